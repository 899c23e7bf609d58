"""What every request passes first: its name, its size, and, under /v1, its token."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minedraft.http.errors import HttpError, error_response

logger = logging.getLogger("minedraft.http")

MAX_BODY_BYTES = 4 << 20
"""A prompt has at most 1 MiB; as JSON, with escapes or as token ids, it is longer."""
MAX_HEADER_BYTES = 32 << 10
_MAX_NAME_CHARS = 128


class Guard:
    """An ASGI middleware.

    Args:
        admits: says whether the token in the `Authorization` of a request under /v1 is a valid one; None: anybody may
            ask. It takes as long for a wrong token as for a right one.
        origins: of web pages that may ask and read answers ("*" for all); none: only those of this server.
        is_meant: says whether a request with this `Host` is for this server; None: every one is.
    """

    def __init__(
        self,
        app: ASGIApp,
        admits: Callable[[str], bool] | None = None,
        origins: Collection[str] = (),
        is_meant: Callable[[str], bool] | None = None,
    ) -> None:
        self._app = app
        self._admits = admits
        self._origins = frozenset(origins)
        self._is_meant = is_meant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        name = headers.get("x-request-id", "")
        if not (name.isprintable() and 0 < len(name) <= _MAX_NAME_CHARS):
            name = uuid.uuid4().hex
        scope["request_id"] = name
        origin = headers.get("origin", "")
        is_shared = bool(origin) and not self._origins.isdisjoint({origin, "*"})

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = name
                if is_shared:
                    answer["access-control-allow-origin"] = origin
                    answer["vary"] = "origin"
            await send(message)

        refusal = self._misdirected(headers)
        if refusal is None and is_shared and scope["method"] == "OPTIONS":
            await _preflight(send_named)
            return
        if refusal is None:
            is_foreign = bool(origin) and not is_shared and not _is_own(origin, headers)
            refusal = self._refusal(scope, headers, is_foreign)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send_named)
            return
        await self._app(scope, _Counted(receive), send_named)

    def _misdirected(self, headers: Headers) -> HttpError | None:
        """Refuse a page whose own name leads here: to its browser, what it asks is no other server's affair."""
        wrong = [host for host in headers.getlist("host") if self._is_meant is not None and not self._is_meant(host)]
        if not wrong:  # a program of HTTP/1.0 names no host, and is no browser
            return None
        said = wrong[0][:_MAX_NAME_CHARS]
        return HttpError(f"{said!r} in Host is no name of this server; http_hosts can name it, if it is meant", 403)

    def _refusal(self, scope: Scope, headers: Headers, is_foreign: bool) -> HttpError | None:
        if is_foreign and scope["method"] == "POST":
            # A browser lets any page send this, as text, and only keeps the answer from it; devices would work for it.
            who = headers["origin"][:_MAX_NAME_CHARS]
            return HttpError(f"web pages of {who} may not ask here; http_origins names those that may", 403)
        if scope["path"].startswith("/v1") and not self._is_admitted(headers.get("authorization", "")):
            message = "a bearer token is needed: Authorization: Bearer TOKEN"
            return HttpError(message, 401, headers={"www-authenticate": "Bearer"})
        if sum(len(key) + len(value) for key, value in scope["headers"]) > MAX_HEADER_BYTES:
            return HttpError(f"the headers have more than {MAX_HEADER_BYTES} bytes", 431)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return _too_large()
        return None

    def _is_admitted(self, authorization: str) -> bool:
        kind, _, token = authorization.partition(" ")
        return self._admits is None or (self._admits(token.strip()) and kind.lower() == "bearer")


def _is_own(origin: str, headers: Headers) -> bool:
    """Return whether a page's origin is this server, by the name that the browser knows: a proxy may pass on another.
    No page can set either header."""
    return origin.partition("://")[2] in (headers.get("host"), headers.get("x-forwarded-host"))


class _Counted:
    """Passes a request's body on, up to its limit; a body sent in chunks does not say its length."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._num_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > MAX_BODY_BYTES:
            raise _too_large()
        return message


def _too_large() -> HttpError:
    return HttpError(f"the body has more than {MAX_BODY_BYTES} bytes", 413)


async def _preflight(send: Send) -> None:
    allowed = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization, content-type, x-request-id",
        "access-control-max-age": "600",
    }
    headers = [(name.encode(), value.encode()) for name, value in allowed.items()]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
