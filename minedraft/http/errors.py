"""Failures as OpenAI's clients expect them: the envelope, its type and the HTTP status."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse

from minedraft.errors import InternalError, InvalidRequest, MineDraftError

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    431: "RequestTooLargeError",
    499: "RequestAbortedError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}


class HttpError(MineDraftError):
    """A refusal that only this door makes.

    Args:
        status: of the response. headers: of it, besides the usual ones.
    """

    def __init__(self, message: str, status: int = 500, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.http_status = status
        self.headers = headers or {}


def envelope(error: MineDraftError) -> dict[str, Any]:
    """Return OpenAI's error object, with the field at fault as `param`."""
    param = error.field if isinstance(error, InvalidRequest) else None
    # The service's inner failures are told to its log, not to strangers.
    message = "the service failed; its log says why" if isinstance(error, InternalError) else str(error)
    kind = _TYPES.get(error.http_status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": param, "code": error.http_status}}


def error_response(error: MineDraftError) -> JSONResponse:
    """Return the response to a call that failed before its answer began."""
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return JSONResponse(envelope(error), error.http_status, headers)


def error_event(error: MineDraftError) -> bytes:
    """Return the event of a stream that failed on its way."""
    return b"data: " + json.dumps(envelope(error)).encode() + b"\n\n"
