"""Whatever happens in a method, its caller gets a typed status, and the log a bounded number of lines without words of
the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from minedraft.errors import DuplicateRequest, InternalError, InvalidRequest, MineDraftError
from minedraft.process.logs import RateLimit
from minedraft.rpc.call_guard import CallGuard
from minedraft.rpc.error_status import abort, to_error
from minedraft.v1 import inference_pb2 as pb2

WORDS = "the secret words of a prompt"


class Servicer:
    async def fail(self, request: object, context: grpc.aio.ServicerContext) -> None:
        raise ValueError(WORDS)

    async def refuse(self, request: object, context: grpc.aio.ServicerContext) -> None:
        await abort(context, DuplicateRequest("request a is live"))

    async def miss(self, request: object, context: grpc.aio.ServicerContext) -> None:
        raise NotImplementedError

    async def count(self, request: object, context: grpc.aio.ServicerContext) -> AsyncIterator[pb2.AbortReply]:
        yield pb2.AbortReply(found=True)
        raise KeyError(WORDS)

    async def read(self, requests: AsyncIterator[pb2.AbortRequest], context: grpc.aio.ServicerContext) -> None:
        async for _ in requests:
            await context.write(pb2.AbortReply(found=True))


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    servicer = Servicer()
    codec = {
        "request_deserializer": pb2.AbortRequest.FromString,
        "response_serializer": pb2.AbortReply.SerializeToString,
    }
    handlers = {
        "Fail": grpc.unary_unary_rpc_method_handler(servicer.fail, **codec),
        "Refuse": grpc.unary_unary_rpc_method_handler(servicer.refuse, **codec),
        "Miss": grpc.unary_unary_rpc_method_handler(servicer.miss, **codec),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.count, **codec),
        "Read": grpc.stream_stream_rpc_method_handler(servicer.read, **codec),
    }
    server = grpc.aio.server(interceptors=[CallGuard()])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    server.add_insecure_port(f"unix:{tmp_path}/s.sock")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        yield channel
    await server.stop(None)


async def error_of(call: grpc.aio.Call) -> tuple[str, MineDraftError]:
    async def read_all() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all()
    return caught.value.code().name, to_error(caught.value)


@pytest.mark.parametrize(
    ("method", "data", "code", "kind"),
    [
        ("Fail", b"", "INTERNAL", InternalError),
        ("Refuse", b"", "ALREADY_EXISTS", DuplicateRequest),
        ("Miss", b"", "UNIMPLEMENTED", InvalidRequest),
        ("Count", b"", "INTERNAL", InternalError),
        ("Fail", b"\xff", "INVALID_ARGUMENT", InvalidRequest),
        ("Count", b"\xff", "INVALID_ARGUMENT", InvalidRequest),
    ],
)
async def test_a_call_ends_with_a_typed_status(channel, caplog, method, data, code, kind) -> None:
    for number in range(9):
        name, error = await error_of(channel.unary_stream(f"/t.T/{method}")(data * (number + 1)))
        assert (name, type(error)) == (code, kind)
        assert "secret" not in str(error)
    limit = RateLimit()  # as in the log of every process
    assert sum(limit.filter(record) for record in caplog.records if record.name.startswith("minedraft")) <= 5
    assert "secret" not in caplog.text


async def test_a_message_in_the_middle_of_a_stream_that_is_none_ends_the_stream(channel) -> None:
    call = channel.stream_stream("/t.T/Read")()
    await call.write(b"")
    assert await call.read()
    await call.write(b"\xff")
    name, error = await error_of(call)
    assert (name, type(error)) == ("INVALID_ARGUMENT", InvalidRequest)


async def test_an_unknown_method_is_unimplemented(channel) -> None:
    name, _ = await error_of(channel.unary_stream("/t.T/Nothing")(b""))
    assert name == "UNIMPLEMENTED"
