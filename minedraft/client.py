"""Clients of a running MineDraft service: `AsyncClient` and its blocking twin `Client`.

    with Client("unix:/run/user/1000/minedraft.sock") as client:
        for out in client.generate("Once upon a time", SamplingParams(max_new_tokens=32)):
            print(out.text, end="")

Every failure is one of `minedraft.errors`, with the field, value and limit that the server named.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
import grpc.aio

from minedraft.address import Address, default_listen
from minedraft.errors import InvalidRequest, MineDraftError, RequestAborted, Unavailable
from minedraft.loan import AsyncLoan, Loan
from minedraft.output import Output, ServiceStatus, join_samples
from minedraft.prompts import (
    GenerateCall,
    Prompt,
    check_interval,
    check_patience,
    check_request_id,
    check_timeout,
    to_call,
)
from minedraft.retrying import Patience
from minedraft.rpc.channel import blocking_client_channel, client_channel
from minedraft.rpc.codec.inference import CLIENT_KEY, generate_to_pb, output_from_pb, status_from_pb
from minedraft.rpc.error_status import to_error
from minedraft.sampling_params import SamplingParams
from minedraft.security.tls import Access, AccessOptions
from minedraft.v1 import inference_pb2, inference_pb2_grpc

_RECONNECT_S = 0.1  # until a service that is not there is looked for again
_LAST_WORDS_S = 0.5  # beyond a deadline, for the service's own answer to it to arrive

DETAILS_KEY = "grpc-status-details-bin"
_CLOSED = "the client was closed during the call"


@dataclass(frozen=True, slots=True)
class _Terms:
    """How a client calls its service, checked: what both clients have in common."""

    address: Address
    timeout_s: float | None
    patience_s: float
    interval_s: float
    access: Access
    metadata: tuple[tuple[str, str], ...]

    @classmethod
    def check(
        cls,
        address: str | os.PathLike[str] | None,
        timeout_s: float | None,
        patience_s: float,
        interval_s: float,
        options: AccessOptions,
    ) -> Self:
        """Return the terms of the arguments of a client; see `AsyncClient`."""
        parsed = Address.parse(default_listen() if address is None else address, "server")
        times = check_timeout(timeout_s), check_patience(patience_s), check_interval(interval_s)
        access = Access.check(parsed, **options)
        return cls(parsed, *times, access, ((CLIENT_KEY, uuid.uuid4().hex), *access.metadata))

    def patience(self, timeout_s: float | None) -> Patience:
        """Return the time that a generation has. timeout_s: the call's own; None for the client's."""
        return Patience(self.patience_s, self.timeout_s if timeout_s is None else check_timeout(timeout_s))

    def send(self, stub: Any, call: GenerateCall, timeout_s: float | None) -> Any:  # noqa: ANN401 - it is untyped
        """Return the stream of replies to a call, which has so many seconds left."""
        message = generate_to_pb(replace(call, timeout_s=timeout_s, interval_s=self.interval_s))
        limit_s = None if timeout_s is None else timeout_s + _LAST_WORDS_S
        return stub.Generate(message, timeout=limit_s, metadata=self.metadata)


class AsyncClient:
    """A connection to the service; use it as `async with AsyncClient(addr) as client`.

    Several event loops may use it, together or one after another: each has its own connection.

    Args:
        address: `unix:PATH`, `host:port`, or a path object for a unix socket; None for the default
            address of `minedraft-launch`.
        timeout_s: deadline of every call that does not give its own, in seconds; None for none.
        patience_s: for so many seconds, a generation that is refused with a hint when to try again, or for which no
            service is there, is sent again; never once its first piece has arrived.
        interval_s: least seconds between two pieces of an answer, but before its end; 0: the service chooses (20 ms).
        access: for a service that asks for them: `token`, or `token_file` (its first token is used); `tls_ca`, the file
            of the CA that signed the service's certificate, or "system" for those of the web; `tls_cert` and `tls_key`,
            this client's own certificate.

    Raises:
        ConfigError: `address` is malformed, or one of the `access` files cannot be used.
        InvalidRequest: `timeout_s`, `patience_s` or `interval_s` is negative or not a number.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
        patience_s: float = 0.0,
        interval_s: float = 0.0,
        **access: Unpack[AccessOptions],
    ) -> None:
        self._terms = _Terms.check(address, timeout_s, patience_s, interval_s, access)
        self.address = self._terms.address
        self._channels: dict[asyncio.AbstractEventLoop, grpc.aio.Channel] = {}
        self._streams: dict[Any, asyncio.AbstractEventLoop] = {}  # answers in progress

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connection; calls in progress are aborted. A later call connects anew."""
        here = asyncio.get_running_loop()
        for stream in [stream for stream, loop in list(self._streams.items()) if loop is here]:
            stream.cancel()  # before grpcio 1.81, closing leaves those alone that no task waits for just now
        channel = self._channels.pop(here, None)
        if channel is not None:
            await channel.close(None)

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Output]:
        """Stream the answer; the pieces of `params.n` samples interleave, and `index` says which sample each is of.

        Leaving the loop early, or cancelling the task, aborts the request. The last piece of each
        sample has `finish_reason` and `usage`.

        Args:
            prompt: text, token ids, or chat messages (rendered with the model's own template).
            request_id: a name for `abort`, at most 64 printable characters; by default a random one.
            timeout_s: the deadline of this call, in seconds: the service ends the answer then.

        Raises:
            MineDraftError: the subclass says why; `retry_after_s` when to try again, if that may help. The pieces
                before it are the tokens so far.
        """
        call, patience = to_call(prompt, params, request_id), self._terms.patience(timeout_s)
        delay_s: float | None = 0.0
        while delay_s is not None:
            await asyncio.sleep(delay_s)
            stream = self._terms.send(self._stub, call, patience.timeout_s())
            self._streams[stream] = asyncio.get_running_loop()
            try:
                async with self._typed_errors():
                    # Not `async for`: if left early, its iterator would keep the connection open after `close`.
                    while (reply := await stream.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                        patience.end()
                        yield output_from_pb(reply)
                return
            except MineDraftError as error:
                if (delay_s := patience.delay_s(error)) is None:
                    raise
            finally:
                del self._streams[stream]
                stream.cancel()

    async def complete(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Output:
        """Return the whole answer. `params.n` must be 1; see `complete_all`."""
        _check_single(params)
        return (await self.complete_all(prompt, params, request_id=request_id, timeout_s=timeout_s))[0]

    async def complete_all(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> list[Output]:
        """Return all `params.n` whole answers, in the order of their index."""
        stream = self.generate(prompt, params, request_id=request_id, timeout_s=timeout_s)
        async with aclosing(cast(Any, stream)):
            return join_samples([piece async for piece in stream])

    async def abort(self, request_id: str) -> bool:
        """End a request. Return False if no live request has this id."""
        async with self._typed_errors():
            message = inference_pb2.AbortRequest(request_id=check_request_id(request_id))
            reply = await self._stub.Abort(message, timeout=self._terms.timeout_s, metadata=self._terms.metadata)
        return bool(reply.found)

    async def status(self) -> ServiceStatus:
        """Return state, batches, workers and rates of the service."""
        async with self._typed_errors():
            request = inference_pb2.GetStatusRequest()
            reply = await self._stub.GetStatus(request, timeout=self._terms.timeout_s, metadata=self._terms.metadata)
        return status_from_pb(reply)

    def borrow(self) -> AsyncLoan:
        """Return a loan of the service: inside its block, this client alone sets mode and batch limits.

            async with client.borrow() as loan:
                await loan.configure("sd", max_batch_size=4, draft_len=2)

        Entering it raises:
            InvalidRequest: the service was started without --allow-configure.
            Unavailable: another client has the loan, or the service cannot be reached.
        """
        return AsyncLoan(lambda: self._stub.Borrow(metadata=self._terms.metadata), self._typed_errors)

    @property
    def _stub(self) -> Any:  # noqa: ANN401 - the generated stub is untyped
        here = asyncio.get_running_loop()
        if here not in self._channels:
            # A channel works only in the event loop that it was made in.
            self._channels = {loop: kept for loop, kept in self._channels.items() if not loop.is_closed()}
            self._channels[here] = client_channel(self.address, self._terms.access.tls)
        return inference_pb2_grpc.InferenceStub(self._channels[here])  # type: ignore[no-untyped-call]

    @asynccontextmanager
    async def _typed_errors(self) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _typed(error, self._terms) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The caller was not cancelled: gRPC raises this in a call whose channel was closed.
            raise RequestAborted(_CLOSED) from None


class Client:
    """`AsyncClient` without async: the same arguments and methods, blocking. It starts no threads."""

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
        patience_s: float = 0.0,
        interval_s: float = 0.0,
        **access: Unpack[AccessOptions],
    ) -> None:
        self._terms = _Terms.check(address, timeout_s, patience_s, interval_s, access)
        self.address = self._terms.address
        self._channel: grpc.Channel | None = None
        self._num_closes = 0

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
            self._num_closes += 1
            channel.close()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Output]:
        """Stream the answer; see `AsyncClient.generate`. Closing the iterator aborts the request."""
        call, patience = to_call(prompt, params, request_id), self._terms.patience(timeout_s)
        delay_s: float | None = 0.0
        while delay_s is not None:
            time.sleep(delay_s)
            try:
                with self._typed_errors():
                    stream = self._terms.send(self._stub, call, patience.timeout_s())
                    try:
                        for reply in stream:
                            patience.end()
                            yield output_from_pb(reply)
                    finally:
                        stream.cancel()
                return
            except MineDraftError as error:
                if (delay_s := patience.delay_s(error)) is None:
                    raise

    def complete(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Output:
        """Return the whole answer. `params.n` must be 1; see `complete_all`."""
        _check_single(params)
        return self.complete_all(prompt, params, request_id=request_id, timeout_s=timeout_s)[0]

    def complete_all(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> list[Output]:
        """Return all `params.n` whole answers, in the order of their index."""
        with closing(cast(Any, self.generate(prompt, params, request_id=request_id, timeout_s=timeout_s))) as stream:
            return join_samples(list(stream))

    def abort(self, request_id: str) -> bool:
        """End a request. Return False if no live request has this id."""
        with self._typed_errors():
            message = inference_pb2.AbortRequest(request_id=check_request_id(request_id))
            reply = self._stub.Abort(message, timeout=self._terms.timeout_s, metadata=self._terms.metadata)
        return bool(reply.found)

    def status(self) -> ServiceStatus:
        """Return state, batches, workers and rates of the service."""
        request, terms = inference_pb2.GetStatusRequest(), self._terms
        with self._typed_errors():
            return status_from_pb(self._stub.GetStatus(request, timeout=terms.timeout_s, metadata=terms.metadata))

    def borrow(self) -> Loan:
        """Return a loan of the service; see `AsyncClient.borrow`."""
        return Loan(lambda requests: self._stub.Borrow(requests, metadata=self._terms.metadata), self._typed_errors)

    @property
    def _stub(self) -> Any:  # noqa: ANN401
        if self._channel is None:
            self._channel = blocking_client_channel(self.address, self._terms.access.tls)
        return inference_pb2_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        num_closes = self._num_closes
        try:
            yield
        except (grpc.RpcError, ValueError) as error:
            if self._num_closes != num_closes:  # a ValueError if the channel was closed before the call began
                raise RequestAborted(_CLOSED) from None
            if isinstance(error, grpc.RpcError):
                raise _typed(error, self._terms) from None
            raise


def _typed(error: grpc.RpcError, terms: _Terms) -> MineDraftError:
    """Return the error that the server meant; an error made by gRPC itself gets the address in its message."""
    call = cast(grpc.aio.AioRpcError, error)  # both kinds have code(), details() and trailing_metadata()
    typed = to_error(call)
    if _has_details(call) or type(typed) not in (Unavailable, RequestAborted):
        return typed
    details = call.details() or ""
    if "No such file" in details or "refused" in details:
        details = "nothing listens there; minedraft-launch starts the service"
    elif terms.address.path is None and (hint := terms.access.explain(details)):
        details = f"{hint} ({details})"
    elif type(typed) is RequestAborted:  # gRPC's answer for a server that stops before it has looked at the call
        details = "the service has stopped"
    return Unavailable(f"no answer from {terms.address}: {details}", _RECONNECT_S)


def _has_details(call: grpc.aio.AioRpcError) -> bool:
    metadata = cast("Iterable[tuple[str, str | bytes]]", call.trailing_metadata() or ())
    return any(key == DETAILS_KEY for key, _ in metadata)


def _check_single(params: SamplingParams | None) -> None:
    if isinstance(params, SamplingParams) and params.n != 1:
        raise InvalidRequest("n", params.n, "complete returns one answer; complete_all returns all n")
