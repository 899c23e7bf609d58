"""The gRPC door of the service: decodes each call, runs it and encodes its replies."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, cast

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
            async with aclosing(_evened(outputs, self._stream_tokens) if self._stream_tokens else outputs) as pieces:
                async for output in pieces:
                    await self._send(context, output)

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

    async def _send(self, context: Context, output: Output) -> None:
        timeout_s, message = self._slow_client_timeout_s, output_to_pb(output)
        if self._stream_tokens:
            pad_reply(message, block_bytes(self._stream_tokens))
        try:
            async with asyncio.timeout(timeout_s):
                await context.write(message)
        except TimeoutError:
            raise Overloaded(f"the client has read nothing for {timeout_s:g} s (slow_client_timeout_s)") from None

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
