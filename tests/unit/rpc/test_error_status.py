"""An error that crosses gRPC is raised again on the other side as what it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc.aio import AioRpcError, Metadata
from grpc_status import rpc_status

from minedraft import errors
from minedraft.errors import (
    ConfigError,
    ConfigErrors,
    Draining,
    DuplicateRequest,
    InternalError,
    InvalidRequest,
    MemoryExhausted,
    MineDraftError,
    Overloaded,
    ProtocolError,
    StaleRound,
    Unavailable,
    WorkerLost,
)
from minedraft.rpc.error_status import MAX_RETRY_AFTER_S, REASONS, abort, for_client, to_error, to_status

ON_THE_WIRE = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, MineDraftError)
    and not kind.__name__.startswith("_")
    and kind is not ConfigErrors  # one message of several
]


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


@pytest.mark.parametrize("kind", [Overloaded, Unavailable, WorkerLost, Draining])
def test_what_may_be_tried_again_keeps_its_hint(kind: type[Overloaded | Unavailable]) -> None:
    again = to_error(as_seen_by_the_client(kind("9 requests wait, limit 8", 2.5)))
    assert type(again) is kind
    assert again.retry_after_s == 2.5


@pytest.mark.parametrize("kind", ON_THE_WIRE)
def test_every_class_has_a_reason_of_the_closed_list_and_comes_back_by_it(kind: type[MineDraftError]) -> None:
    is_about_a_field = issubclass(kind, InvalidRequest | ConfigError)
    error = kind("n", 0, "at least 1") if is_about_a_field else kind("it is so")
    again = to_error(as_seen_by_the_client(error))
    assert error.reason in REASONS
    assert again.reason == error.reason
    assert (again.retry_after_s is not None) is error.retryable


def test_a_status_has_the_standard_details() -> None:
    status = rpc_status.from_call(as_seen_by_the_client(InvalidRequest("top_p", 2.0, "must be in (0, 1]")))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.domain, info.reason) == ("minedraft", "INVALID_REQUEST")
    assert [(v.field, v.description) for v in bad.field_violations] == [("top_p", "must be in (0, 1]")]


@pytest.mark.parametrize("hint_s", [-5.0, 1e12, float("inf")])
def test_a_hint_is_bounded_whoever_sent_it(hint_s: float) -> None:
    again = to_error(as_seen_by_the_client(Overloaded("full", hint_s)))
    assert 0.0 <= (again.retry_after_s or 0.0) <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("error", "says", "hides"),
    [
        (ProtocolError("verifier at unix:/run/x/v.sock: nonsense"), "see the service's log", "/run"),
        (MemoryExhausted("no room in /dev/shm/minedraft-1"), "see the service's log", "/dev"),
        (WorkerLost("verifier at unix:/run/x/v.sock is lost: killed"), "is lost: killed", "/run"),
        (Unavailable("no verifier: File '/opt/a.py', line 3"), "no verifier", "/opt"),
        (InvalidRequest("request_id", "/mine/1", "is in use"), "/mine/1", "never there"),
        (Overloaded("the client has read 3/4 of 8 MB at 2 MB/s"), "3/4 of 8 MB at 2 MB/s", "never there"),
    ],
)
def test_a_client_sees_neither_the_inside_nor_the_disk_of_the_service(
    error: MineDraftError, says: str, hides: str
) -> None:
    shown = for_client(error)
    assert says in str(shown)
    assert hides not in str(shown)
    assert (shown.grpc_code, shown.retry_after_s) == (error.grpc_code, error.retry_after_s)


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


class Echo:
    """A server whose one method fails with the error it is told, and a client that has no options."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = channel.unary_unary("/echo.Echo/Fail")
        self.error: MineDraftError = MineDraftError()

    async def fail(self, request: bytes, context: grpc.aio.ServicerContext) -> None:
        await abort(context, self.error)

    async def seen(self, error: MineDraftError) -> AioRpcError:
        self.error = error
        with pytest.raises(AioRpcError) as caught:
            await self._call(b"")
        return caught.value


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Echo]:
    server = grpc.aio.server()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        echo = Echo(channel)
        methods = {"Fail": grpc.unary_unary_rpc_method_handler(echo.fail)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", methods),))
        server.add_insecure_port(f"unix:{tmp_path}/s.sock")
        await server.start()
        yield echo
        await server.stop(None)


NASTY = [
    "x" * 500_000,
    "🎉" * 9_000,
    "\0" * 20_000,
    "\n" * 9_000 + "end",
    "%41%zz" * 5_000,
    "\ud800" * 9_000,
    " \t\r\n ",
]


@pytest.mark.parametrize("text", NASTY, ids=lambda text: ascii(text[:3]))
async def test_whatever_its_words_an_error_arrives_as_what_it_was(echo: Echo, text: str) -> None:
    for error in (InvalidRequest(text, text, text), DuplicateRequest(text), Overloaded(text, 2.5), InternalError(text)):
        call = await echo.seen(error)
        assert type(to_error(call)) is type(error)
        size = sum(32 + len(key) + len(value) for key, value in call.trailing_metadata() or ())
        assert size + 3 * len((call.details() or "").encode()) < 7_000, "gRPC's own limit is 8 KB"


async def test_the_field_and_the_limit_are_cut_not_lost(echo: Echo) -> None:
    again = to_error(await echo.seen(InvalidRequest("f" * 900, "v" * 900, "é" * 900)))
    assert isinstance(again, InvalidRequest)
    assert again.field == "f" * 117 + "…"
    assert again.value.startswith("'vvv")
    assert again.limit == "é" * 298 + "…"
