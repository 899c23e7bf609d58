"""An error that crosses gRPC is raised again on the other side as what it was."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from minedraft.errors import (
    Draining,
    DuplicateRequest,
    InternalError,
    InvalidRequest,
    MineDraftError,
    Overloaded,
    ProtocolError,
    StaleRound,
    Unavailable,
    WorkerLost,
)
from minedraft.rpc.status import to_error, to_status


def as_seen_by_the_client(error: MineDraftError, code: grpc.StatusCode | None = None) -> AioRpcError:
    status = to_status(error, code)
    return AioRpcError(status.code, Metadata(), Metadata(*status.trailing_metadata), status.details)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("top_p", 2.0, "must be in (0, 1]"),
        InvalidRequest("prompt", "x" * 500, "at most 100"),
        DuplicateRequest("request a is live"),
        WorkerLost("verifier: process 12 exited with 70"),
        Draining("no new requests"),
        ProtocolError("drafter's reply: nonsense"),
        StaleRound("epoch 1, not 2"),
    ],
)
def test_class_and_message_survive(error: MineDraftError) -> None:
    again = to_error(as_seen_by_the_client(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_an_invalid_request_keeps_field_value_and_limit() -> None:
    again = to_error(as_seen_by_the_client(InvalidRequest("top_p", 2.0, "must be in (0, 1]")))
    assert isinstance(again, InvalidRequest)
    assert (again.field, again.value, again.limit) == ("top_p", "2.0", "must be in (0, 1]")


def test_overload_keeps_its_retry_hint() -> None:
    again = to_error(as_seen_by_the_client(Overloaded("9 requests wait, limit 8", retry_after_s=2.5)))
    assert isinstance(again, Overloaded)
    assert again.retry_after_s == 2.5


def test_a_given_code_overrides_the_class_s_own() -> None:
    call = as_seen_by_the_client(StaleRound("old"), grpc.StatusCode.FAILED_PRECONDITION)
    assert call.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert type(to_error(call)) is StaleRound


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.UNIMPLEMENTED, InternalError),
    ],
)
def test_a_status_of_grpc_itself_becomes_the_nearest_error(code: grpc.StatusCode, kind: type[MineDraftError]) -> None:
    again = to_error(AioRpcError(code, Metadata(), Metadata(), "connection reset"))
    assert type(again) is kind
    assert "connection reset" in str(again)


def test_garbage_in_the_details_is_ignored() -> None:
    metadata = Metadata(("grpc-status-details-bin", b"\xff\xfe"))
    again = to_error(AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), metadata, "odd"))
    assert type(again) is InternalError
