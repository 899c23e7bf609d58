"""What every method of a server has in common: bytes that are no message, and errors that nobody expected.

gRPC answers both with UNKNOWN, the words of the exception, and a traceback in the log for each call.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from inspect import isasyncgenfunction
from traceback import format_tb
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from minedraft.errors import InternalError, InvalidRequest, MineDraftError
from minedraft.rpc import error_status

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]  # generic in its stub only
else:
    _Interceptor = grpc.aio.ServerInterceptor

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Method: TypeAlias = Callable[..., Any]


class _Malformed:
    """In the place of a request that could not be parsed."""

    def __init__(self, num_bytes: int) -> None:
        self.error = InvalidRequest("request", f"{num_bytes} bytes", "must be a message of the method's type")


class CallGuard(_Interceptor):
    """Ends a call of any method with a typed status, whatever its bytes are and whatever happens in it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method
            return cast("_Handler", handler)
        sides = (handler.request_streaming, handler.response_streaming)
        kind = "_".join("stream" if is_stream else "unary" for is_stream in sides)
        guard = self._guarded_stream if isasyncgenfunction(getattr(handler, kind)) else self._guarded
        guarded: _Handler = getattr(grpc, f"{kind}_rpc_method_handler")(
            guard(getattr(handler, kind), getattr(handler_call_details, "method", "")),
            partial(_parse, handler.request_deserializer),
            handler.response_serializer,
        )
        return guarded

    def _guarded(self, method: _Method, name: str) -> _Method:
        async def call(request: object, context: _Context) -> Any:  # noqa: ANN401 - whatever the method returns
            try:
                return await method(_checked(request), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await self._end(context, error, name)

        return call

    def _guarded_stream(self, method: _Method, name: str) -> _Method:
        async def call(request: object, context: _Context) -> AsyncIterator[Any]:
            try:
                async for reply in method(_checked(request), context):
                    yield reply
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await self._end(context, error, name)

        return call

    async def _end(self, context: _Context, error: Exception, name: str) -> NoReturn:
        if isinstance(error, NotImplementedError):  # of a generated servicer
            missing = InvalidRequest("method", name, "is not implemented")
            await error_status.abort(context, missing, grpc.StatusCode.UNIMPLEMENTED)
        await error_status.abort(context, self._describe(error, name))

    def _describe(self, error: Exception, name: str) -> MineDraftError:
        """Return the error for the caller, and log it; not in its own words, which may quote what a client sent."""
        if isinstance(error, InvalidRequest):
            logger.warning("%s: %s", name, error)
            return error
        where = "".join(format_tb(error.__traceback__))
        logger.error("%s failed: %s at\n%s", name, type(error).__name__, where)
        return error_status.for_client(InternalError(name))


def _parse(parse: Callable[[bytes], object] | None, data: bytes) -> object:
    try:
        return data if parse is None else parse(data)
    except Exception:  # the parser's own, of whatever kind
        return _Malformed(len(data))


def _checked(request: Any) -> Any:  # noqa: ANN401
    """Return the request, or its stream of requests; raise InvalidRequest for one that could not be parsed."""
    if isinstance(request, _Malformed):
        raise request.error
    return _checked_stream(request) if hasattr(request, "__aiter__") else request


async def _checked_stream(requests: AsyncIterator[object]) -> AsyncIterator[object]:
    async for request in requests:
        yield _checked(request)
