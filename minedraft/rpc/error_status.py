"""The mapping between errors and gRPC statuses: code, message, and google.rpc details.

Every status has an `ErrorInfo` with the reason of the error class; field errors add `BadRequest`,
retryable ones `RetryInfo`. The other side can thus raise the same class.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from minedraft import errors
from minedraft.errors import ConfigError, InternalError, InvalidRequest, MineDraftError, Overloaded

DOMAIN = "minedraft"
_RETRY_AFTER_S = 1.0

# A peer may refuse trailers of more than 8 KB and then report an overload. The message takes up to three
# times its bytes there (each can become %XX), and once more in the details, which are in base64.
_MAX_MESSAGE_BYTES = 800
_MAX_LIMIT_BYTES = 600
_MAX_VALUE_BYTES = 480
_MAX_FIELD_BYTES = 120

_PLAIN_ERRORS: dict[str, type[MineDraftError]] = {
    kind.reason: kind
    for kind in (
        errors.DuplicateRequest,
        errors.DeadlineExceeded,
        errors.RequestAborted,
        errors.Unavailable,
        errors.WorkerLost,
        errors.Draining,
        errors.NumericError,
        errors.InternalError,
        errors.ProtocolError,
        errors.StaleRound,
    )
}
_BY_CODE: dict[grpc.StatusCode, type[MineDraftError]] = {
    grpc.StatusCode.ALREADY_EXISTS: errors.DuplicateRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.RequestAborted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
}


def to_status(error: MineDraftError, code: grpc.StatusCode | None = None) -> grpc.Status:
    """Return the status for `error`, as `context.abort_with_status` takes it; `code` overrides that of its class."""
    name = error.grpc_code if code is None else code.name
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    details: list[Any] = [info]
    if isinstance(error, (InvalidRequest, ConfigError)):
        field, limit = _cut(error.field, _MAX_FIELD_BYTES), _cut(error.limit, _MAX_LIMIT_BYTES)
        info.metadata.update(field=field, value=_cut(error.value, _MAX_VALUE_BYTES), limit=limit)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=limit)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retryable:
        retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else _RETRY_AFTER_S
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
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
    if reason == InvalidRequest.reason and metadata:
        return InvalidRequest(
            metadata.get("field", ""), _Verbatim(metadata.get("value", "")), metadata.get("limit", "")
        )
    if reason == Overloaded.reason or (not reason and call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED):
        return Overloaded(message, retry_after_s)
    if reason in _PLAIN_ERRORS:
        return _PLAIN_ERRORS[reason](message)
    return _BY_CODE.get(call.code(), InternalError)(message)


def _cut(text: str, max_bytes: int) -> str:
    """Return the text truncated to `max_bytes` of UTF-8, with lone surrogates as escapes."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - len("…".encode())].decode(errors="ignore") + "…"


class _Verbatim(str):
    """Text that is already a repr and must not be quoted again."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _read_details(call: grpc.aio.AioRpcError) -> tuple[str, dict[str, str], float]:
    """Return reason and metadata of the ErrorInfo, empty without one, and the retry delay in seconds."""
    reason, metadata, retry_after_s = "", dict[str, str](), _RETRY_AFTER_S
    # ValueError: the details contradict the call's code or message, so they are not ours.
    with suppress(ValueError, DecodeError):
        status = rpc_status.from_call(cast(grpc.Call, call))
        for detail in status.details if status is not None else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return reason, metadata, retry_after_s
