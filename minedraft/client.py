"""Clients of a running MineDraft: `AsyncClient`, and `Client`, the same without async.

    with Client("unix:/run/user/1000/minedraft.sock") as client:
        for out in client.generate("Once upon a time", SamplingParams(max_new_tokens=32)):
            print(out.text, end="")

Every failure is one of `minedraft.errors`, with the field, value and limit the server named.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio

from minedraft.address import Address, default_listen
from minedraft.errors import InvalidRequest, MineDraftError, Unavailable
from minedraft.output import Output, ServiceStatus, join_outputs
from minedraft.rpc.codec_inference import (
    CLIENT_KEY,
    GenerateCall,
    Prompt,
    generate_to_pb,
    output_from_pb,
    status_from_pb,
    to_prompt,
)
from minedraft.rpc.status import to_error
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from minedraft.v1 import inference_pb2, inference_pb2_grpc

DETAILS_KEY = "grpc-status-details-bin"
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.enable_retries", 0),  # a generation must not run twice behind the caller's back
    ("grpc.use_local_subchannel_pool", 1),
)


class AsyncClient:
    """A connection to the service; use it as `async with AsyncClient(addr) as client`.

    Args:
        address: `unix:PATH` or `host:port`; by default where `minedraft-launch` listens by default.
        timeout_s: deadline of every call, unless the call gives its own; None for none.
    """

    def __init__(self, address: str | None = None, *, timeout_s: float | None = None) -> None:
        self.address = Address.parse(address or default_listen(), "server")
        self._timeout_s = timeout_s
        self._metadata = ((CLIENT_KEY, uuid.uuid4().hex),)
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connection; calls in progress are aborted. A later call connects anew."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> AsyncIterator[Output]:
        """Stream the answer; with `params.n` samples their pieces interleave, told apart by `index`.

        Leaving the loop early, or cancelling the task, aborts the request. The last piece of each
        sample has `finish_reason` and `usage`.

        Args:
            prompt: text, token ids, or chat messages (rendered with the model's own template).
            request_id: a name for `abort`; by default a random one.

        Raises:
            MineDraftError: the subclass says why.
        """
        message = _to_message(prompt, params, request_id)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        call = self._stub.Generate(message, timeout=timeout_s, metadata=self._metadata)
        try:
            async with self._typed_errors():
                async for reply in call:
                    yield output_from_pb(reply)
        finally:
            call.cancel()

    async def complete(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Output:
        """The whole answer at once. `params.n` must be 1; see `complete_all`."""
        _check_single(params)
        return (await self.complete_all(prompt, params, request_id=request_id, timeout_s=timeout_s))[0]

    async def complete_all(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> list[Output]:
        """All `params.n` whole answers, in the order of their index."""
        stream = self.generate(prompt, params, request_id=request_id, timeout_s=timeout_s)
        async with aclosing(cast(Any, stream)):
            return _join([piece async for piece in stream])

    async def abort(self, request_id: str) -> bool:
        """End a request; False when no live one has this id."""
        async with self._typed_errors():
            reply = await self._stub.Abort(inference_pb2.AbortRequest(request_id=request_id), timeout=self._timeout_s)
        return bool(reply.found)

    async def status(self) -> ServiceStatus:
        """State, batches, workers and rates of the service."""
        async with self._typed_errors():
            return status_from_pb(await self._stub.GetStatus(inference_pb2.GetStatusRequest(), timeout=self._timeout_s))

    async def configure(self, mode: Mode, max_batch_size: int, draft_len: int) -> None:
        """Switch the mode between requests and restart the counters; the service must allow it."""
        message = inference_pb2.ConfigureRequest(mode=mode.value, max_batch_size=max_batch_size, draft_len=draft_len)
        async with self._typed_errors():
            await self._stub.Configure(message, timeout=self._timeout_s)

    @property
    def _stub(self) -> Any:  # noqa: ANN401 - the generated stub is untyped
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.address.target, options=_OPTIONS)
        return inference_pb2_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]

    @asynccontextmanager
    async def _typed_errors(self) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _typed(error, self.address) from None


class Client:
    """`AsyncClient` without async: the same methods, blocking; no threads of its own."""

    def __init__(self, address: str | None = None, *, timeout_s: float | None = None) -> None:
        self.address = Address.parse(address or default_listen(), "server")
        self._timeout_s = timeout_s
        self._metadata = ((CLIENT_KEY, uuid.uuid4().hex),)
        self._channel: grpc.Channel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; calls in progress are aborted. A later call connects anew."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[Output]:
        """Stream the answer; see `AsyncClient.generate`. Closing the iterator aborts the request."""
        message = _to_message(prompt, params, request_id)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        call = self._stub.Generate(message, timeout=timeout_s, metadata=self._metadata)
        try:
            with self._typed_errors():
                for reply in call:
                    yield output_from_pb(reply)
        finally:
            call.cancel()

    def complete(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Output:
        """The whole answer at once. `params.n` must be 1; see `complete_all`."""
        _check_single(params)
        return self.complete_all(prompt, params, request_id=request_id, timeout_s=timeout_s)[0]

    def complete_all(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> list[Output]:
        """All `params.n` whole answers, in the order of their index."""
        with closing(cast(Any, self.generate(prompt, params, request_id=request_id, timeout_s=timeout_s))) as stream:
            return _join(list(stream))

    def abort(self, request_id: str) -> bool:
        """End a request; False when no live one has this id."""
        with self._typed_errors():
            reply = self._stub.Abort(inference_pb2.AbortRequest(request_id=request_id), timeout=self._timeout_s)
        return bool(reply.found)

    def status(self) -> ServiceStatus:
        """State, batches, workers and rates of the service."""
        with self._typed_errors():
            return status_from_pb(self._stub.GetStatus(inference_pb2.GetStatusRequest(), timeout=self._timeout_s))

    @property
    def _stub(self) -> Any:  # noqa: ANN401
        if self._channel is None:
            self._channel = grpc.insecure_channel(self.address.target, options=_OPTIONS)
        return inference_pb2_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise _typed(error, self.address) from None


def _to_message(prompt: Prompt, params: SamplingParams | None, request_id: str) -> inference_pb2.GenerateRequest:
    call = GenerateCall(to_prompt(prompt), params or SamplingParams(), request_id or uuid.uuid4().hex)
    return generate_to_pb(call)


def _typed(error: grpc.RpcError, address: Address) -> MineDraftError:
    """The error the server meant; one that gRPC itself made (nobody listens ...) says where."""
    call = cast(grpc.aio.AioRpcError, error)  # both kinds have code(), details() and trailing_metadata()
    typed = to_error(call)
    if type(typed) is Unavailable and not _has_details(call):
        details = call.details() or ""
        if "No such file" in details or "refused" in details:
            details = "nothing listens there; minedraft-launch starts the service"
        return Unavailable(f"no answer from {address.target}: {details}")
    return typed


def _has_details(call: grpc.aio.AioRpcError) -> bool:
    metadata = cast("Iterable[tuple[str, str | bytes]]", call.trailing_metadata() or ())
    return any(key == DETAILS_KEY for key, _ in metadata)


def _check_single(params: SamplingParams | None) -> None:
    if params is not None and params.n != 1:
        raise InvalidRequest("n", params.n, "complete gives one answer; complete_all gives all n")


def _join(pieces: Sequence[Output]) -> list[Output]:
    indexes = sorted({piece.index for piece in pieces})
    return [join_outputs([piece for piece in pieces if piece.index == index]) for index in indexes]
