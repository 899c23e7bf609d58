"""The gRPC door of the service: decodes each call, runs it and encodes its replies."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast

import grpc.aio

from minedraft.errors import DeadlineExceeded, MineDraftError, Overloaded, RequestAborted
from minedraft.output import Output
from minedraft.process.logs import log_request
from minedraft.prompts import MAX_REQUEST_ID_CHARS
from minedraft.rpc import error_status
from minedraft.rpc.codec.inference import (
    CLIENT_KEY,
    borrow_from_pb,
    generate_from_pb,
    output_to_pb,
    pad_reply,
    status_to_pb,
)
from minedraft.server.answers.even_pieces import EvenPieces, block_bytes
from minedraft.server.service import InferenceService
from minedraft.v1 import inference_pb2, inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class GrpcDoor(inference_pb2_grpc.InferenceServicer):
    """Serves Generate, Abort, GetStatus and Borrow of one service.

    Args:
        slow_client_timeout_s: seconds after which a client that reads nothing of its answer loses it.
        stream_tokens: tokens in each message, which are then padded to one size; 0: as they come.
    """

    def __init__(self, service: InferenceService, slow_client_timeout_s: float, stream_tokens: int = 0) -> None:
        self._service = service
        self._slow_client_timeout_s = slow_client_timeout_s
        self._stream_tokens = stream_tokens

    def add_to(self, server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Context) -> None:
        # Written to the context, not yielded: a cancelled generator would be closed only later.
        name = request.request_id[:MAX_REQUEST_ID_CHARS] or uuid.uuid4().hex
        log_request.set(name)
        async with self._typed(context, f"request {name!r}", lambda: _why_cancelled(context)):
            call = generate_from_pb(request)
            timeout_s = _earlier(call.timeout_s, context.time_remaining())
            trace = _trace_headers_of(context)
            call = replace(call, request_id=name, timeout_s=timeout_s, trace_headers=trace)
            outputs = self._service.generate(call, _client_of(context))
            pieces = _evened(outputs, self._stream_tokens) if self._stream_tokens else outputs
            async with _ReadingClient(context, self._slow_client_timeout_s) as client, aclosing(pieces):
                async for output in pieces:
                    await client.send(self._encode(output))

    async def Abort(self, request: inference_pb2.AbortRequest, context: Context) -> inference_pb2.AbortReply:
        return inference_pb2.AbortReply(found=self._service.abort(request.request_id))

    async def GetStatus(
        self, request: inference_pb2.GetStatusRequest, context: Context
    ) -> inference_pb2.GetStatusReply:
        return status_to_pb(self._service.status())

    async def Borrow(self, requests: AsyncIterator[inference_pb2.BorrowRequest], context: Context) -> None:
        async with self._typed(context, "a loan"), self._service.lend() as lent:
            await context.write(inference_pb2.BorrowReply())
            async for request in requests:
                await lent.apply(borrow_from_pb(request))
                await context.write(inference_pb2.BorrowReply())

    def _encode(self, output: Output) -> inference_pb2.GenerateReply:
        message = output_to_pb(output)
        if self._stream_tokens:
            pad_reply(message, block_bytes(self._stream_tokens))
        return message

    @asynccontextmanager
    async def _typed(
        self, context: Context, name: str, describe_cancel: Callable[[], MineDraftError] | None = None
    ) -> AsyncIterator[None]:
        """Wrap a whole call: count its failure and send it as a gRPC status."""
        try:
            with self._service.counted(name, describe_cancel):
                yield
        except MineDraftError as error:
            await error_status.abort(context, error_status.for_client(error))


class _ReadingClient:
    """The receiver of an answer, which loses it if it reads nothing for `timeout_s` seconds.

    One timer watches the whole call, and is set anew when it rings: one for each message would cost as much as the
    message.

    Raises (on leaving the block):
        Overloaded: a message was not taken in time; the block was cancelled.
    """

    def __init__(self, context: Context, timeout_s: float) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        self._sending_since_s: float | None = None

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._timer = self._loop.call_later(self._timeout_s, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            limit = f"{self._timeout_s:g} s (slow_client_timeout_s)"
            raise Overloaded(f"the client has read nothing for {limit}") from None

    async def send(self, message: inference_pb2.GenerateReply) -> None:
        """Return when there is room for the next message."""
        self._sending_since_s = self._loop.time()
        await self._context.write(message)
        self._sending_since_s = None

    def _look(self) -> None:
        now_s, since_s = self._loop.time(), self._sending_since_s
        if since_s is None:
            since_s = now_s
        if now_s - since_s < self._timeout_s:
            self._timer = self._loop.call_at(since_s + self._timeout_s, self._look)
        else:
            self._limit.reschedule(now_s)


async def _evened(outputs: AsyncGenerator[Output, None], num_tokens: int) -> AsyncGenerator[Output, None]:
    """Yield the same tokens, in messages of `num_tokens`; what an error finds waiting comes before it."""
    pieces = EvenPieces(num_tokens)
    async with aclosing(outputs):
        try:
            async for output in outputs:
                for piece in pieces.push(output):
                    yield piece
        except MineDraftError:
            for piece in pieces.flush():
                yield piece
            raise


def _earlier(timeout_s: float | None, remaining_s: float | None) -> float | None:
    """Return the nearer of two deadlines; None if there is none."""
    return min((seconds for seconds in (timeout_s, remaining_s) if seconds is not None), default=None)


def _why_cancelled(context: Context) -> MineDraftError:
    remaining_s = cast("float | None", context.time_remaining())
    return DeadlineExceeded() if remaining_s is not None and remaining_s <= 0 else RequestAborted()


def _client_of(context: Context) -> str:
    """Return a name for the client of a call. Its peer name is not enough: all clients of a unix socket share one."""
    names = [str(value) for key, value in context.invocation_metadata() or () if key == CLIENT_KEY]
    return f"{context.peer()} {''.join(names)}"


def _trace_headers_of(context: Context) -> tuple[tuple[str, str], ...]:
    """Return the W3C trace context of a call."""
    metadata = context.invocation_metadata() or ()
    return tuple([(key, str(value)) for key, value in metadata if key in ("traceparent", "tracestate")])
