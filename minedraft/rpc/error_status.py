"""The mapping between errors and gRPC statuses: code, message, and google.rpc details.

Every status has an `ErrorInfo` (domain "minedraft", a reason of `REASONS`); an error about a field adds `BadRequest`
with the field and the limit, one that may be tried again `RetryInfo`. The other side can thus raise the same class.
"""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from minedraft import errors
from minedraft.errors import ConfigError, InternalError, InvalidRequest, MineDraftError, Verbatim

DOMAIN = "minedraft"
MAX_RETRY_AFTER_S = 3600.0

# A peer may refuse trailers of more than 8 KB and then report an overload. The message takes up to three
# times its bytes there (each can become %XX), and once more in the details, which are in base64.
_MAX_MESSAGE_BYTES = 800
_MAX_LIMIT_BYTES = 600
_MAX_VALUE_BYTES = 480
_MAX_FIELD_BYTES = 120

# Where something lies on the server's disk is of no use to a client, and of some use to an attacker.
_PLACE = re.compile(r"(?:unix:|(?<![\w/.]))/[^\s'\",;)]+")

_KINDS: dict[str, type[MineDraftError]] = {
    kind.reason: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MineDraftError) and not kind.__name__.startswith("_")
} | {
    # Several classes have these reasons; these are the ones to raise.
    ConfigError.reason: ConfigError,
    InternalError.reason: InternalError,
}
_BY_CODE: dict[grpc.StatusCode, type[MineDraftError]] = {
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.ALREADY_EXISTS: errors.DuplicateRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.RequestAborted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
}
REASONS = frozenset(_KINDS)
"""Every reason that an `ErrorInfo` of this package can have; each is explained at its class in `minedraft.errors`."""


def for_client(error: MineDraftError) -> MineDraftError:
    """Return the error as a client may see it: without the inside of the service, and without places on its disk.

    The error of a worker or a broken invariant is of the service, whatever its words: the log has them.
    """
    if isinstance(error, InternalError):
        return InternalError("the request failed inside the service; see the service's log")
    shown = copy.copy(error)
    if not isinstance(error, InvalidRequest):  # which says what the client gave
        shown.args = (_PLACE.sub("(a place)", str(error)),)
    return shown


def to_status(error: MineDraftError, code: grpc.StatusCode | None = None) -> grpc.Status:
    """Return the status for `error`, as `context.abort_with_status` takes it; `code` overrides that of its class."""
    name = error.grpc_code if code is None else code.name
    reason = error.reason if error.reason in REASONS else InternalError.reason
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    details: list[Any] = [info]
    if isinstance(error, (InvalidRequest, ConfigError)):
        field, limit = _cut(error.field, _MAX_FIELD_BYTES), _cut(error.limit, _MAX_LIMIT_BYTES)
        info.metadata.update(field=field, value=_cut(error.value, _MAX_VALUE_BYTES), limit=limit)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=limit)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(_bounded(error.retry_after_s) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_pb2.Code.Value(name), message=_cut(str(error), _MAX_MESSAGE_BYTES))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: MineDraftError, code: grpc.StatusCode | None = None
) -> NoReturn:
    """End the call with the status for `error`."""
    status = to_status(error, code)
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")


def to_error(call: grpc.aio.AioRpcError) -> MineDraftError:
    """Return the error that the other side meant; for a status without details, the nearest one by code."""
    message = call.details() or call.code().name
    reason, metadata, retry_after_s = _read_details(call)
    kind = _KINDS.get(reason) or _BY_CODE.get(call.code(), InternalError)
    if issubclass(kind, (InvalidRequest, ConfigError)):
        if not metadata:
            return InternalError(message)
        value = Verbatim(metadata.get("value", ""))
        return kind(metadata.get("field", ""), value, metadata.get("limit", ""))
    error = kind(message)
    if retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error


def _cut(text: str, max_bytes: int) -> str:
    """Return the text truncated to `max_bytes` of UTF-8, with lone surrogates as escapes."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - len("…".encode())].decode(errors="ignore") + "…"


def _bounded(retry_after_s: float) -> float:
    return min(max(retry_after_s, 0.0), MAX_RETRY_AFTER_S)


def _read_details(call: grpc.aio.AioRpcError) -> tuple[str, dict[str, str], float | None]:
    """Return reason and metadata of the ErrorInfo, empty without one, and the retry delay in seconds, if there is
    one."""
    reason, metadata, retry_after_s = "", dict[str, str](), None
    # ValueError: the details contradict the call's code or message, so they are not ours.
    with suppress(ValueError, DecodeError):
        status = rpc_status.from_call(cast(grpc.Call, call))
        for detail in status.details if status is not None else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after_s = _bounded(retry.retry_delay.ToNanoseconds() / 1e9)
    return reason, metadata, retry_after_s
