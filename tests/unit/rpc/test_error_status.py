"""An error that crosses gRPC is raised again on the other side as what it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
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
from minedraft.rpc.error_status import abort, to_error, to_status


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
