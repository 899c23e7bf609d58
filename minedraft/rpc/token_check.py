"""Refuses every call without a valid token, whatever its method, before a byte of its message is read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from minedraft.errors import Unauthenticated
from minedraft.rpc import error_status
from minedraft.security.tokens import TokenFile

logger = logging.getLogger(__name__)

_KEY = "authorization"
_SCHEME = "Bearer "

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]  # generic in its stub only
else:
    _Interceptor = grpc.aio.ServerInterceptor

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TokenCheck(_Interceptor):
    """Admits the calls that show one of the tokens; others end with UNAUTHENTICATED.

    A refusal is logged with the caller's address, never with what it showed. A stream that writes while it is refused
    may see INTERNAL instead: grpc.aio makes that of its own failed write, if it notices it before the status. To read a
    message first would hide this, but have strangers keep calls and memory of the service. Our clients read first.

    Args:
        on_refused: called with each refusal.
    """

    def __init__(
        self,
        tokens: TokenFile,
        on_refused: Callable[[Unauthenticated], object] = lambda error: None,
    ) -> None:
        self._tokens = tokens
        self._on_refused = on_refused
        # A stream in both directions fits every method: it reads nothing, however many messages the caller has.
        self._refusal: _Handler = grpc.stream_stream_rpc_method_handler(self._refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        if self._tokens.admits(_shown(handler_call_details.invocation_metadata or ())):
            return await continuation(handler_call_details)
        return self._refusal

    async def _refuse(self, requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        error = Unauthenticated("the call shows no valid token")
        self._on_refused(error)
        logger.warning("refused a call without a valid token from %s", context.peer())
        await error_status.abort(context, error)


def _shown(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the token of a call; nothing unless it shows exactly one."""
    shown = [value for key, value in metadata if key == _KEY and isinstance(value, str)]
    return shown[0].removeprefix(_SCHEME) if len(shown) == 1 and shown[0].startswith(_SCHEME) else ""
