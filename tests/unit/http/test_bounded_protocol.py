"""What the HTTP server reads before it refuses: real sockets, no application that would answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from minedraft.address import Address
from minedraft.http import bounded_protocol
from minedraft.http.bounded_protocol import MAX_TARGET_BYTES, BoundedProtocol
from minedraft.http.guard import MAX_BODY_BYTES, MAX_HEADER_BYTES
from minedraft.http.serving import listen_at, make_server


@asynccontextmanager
async def echoing(handler: Callable[[Request], Awaitable[PlainTextResponse]] | None = None) -> AsyncIterator[int]:
    """Serve an application that returns the size of the body, or what a handler does; yield its port."""

    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    http = make_server(Starlette(routes=[Route("/size", handler or size, methods=["POST"])]))
    with listen_at(Address(host="127.0.0.1", port=0)) as listening:
        task = asyncio.create_task(http.serve([listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            http.stop()
            http.stop()
            await task


async def answer_to(port: int, *pieces: bytes) -> bytes:
    """Return all that comes back; the connection may end before all pieces are sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 10)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


HEAD = b"POST /size HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
ENDLESS = [b"a" * 4096] * 64


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD, b"x: ", *ENDLESS],
        [HEAD, *([b"x: " + b"a" * 1000 + b"\r\n"] * 256)],
        [b"POST /", *ENDLESS],
        [b"POST /" + b"a" * (MAX_TARGET_BYTES + 1) + b" HTTP/1.1\r\n\r\n"],
        [CHUNKED, b"1;", *ENDLESS],
        [CHUNKED, b"1\r\na\r\n0\r\nx: ", *ENDLESS],
        [b"nonsense\r\n\r\n"],
    ],
)
async def test_what_has_no_end_is_not_read(pieces: list[bytes]) -> None:
    async with echoing() as port:
        answer = await answer_to(port, *pieces)
        assert answer == b"" or b" 400 " in answer.partition(b"\r\n")[0]
        assert (await answer_to(port, HEAD + b"content-length: 3\r\n\r\nabc")).endswith(b"\r\n\r\n3")


async def test_long_bodies_in_any_pieces_are_read() -> None:
    size = MAX_BODY_BYTES - 7
    headers = HEAD + b"x: " + b"a" * (MAX_HEADER_BYTES - 200) + b"\r\n"
    async with echoing() as port:
        whole = headers + b"content-length: %d\r\n\r\n" % size
        assert (await answer_to(port, whole, b"a" * size)).endswith(b"%d" % size)
        chunks = [b"1f4\r\n" + b"a" * 500 + b"\r\n"] * 400
        assert (await answer_to(port, CHUNKED, *chunks, b"0\r\n\r\n")).endswith(b"200000")


UPGRADE = b"POST /size HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"


@pytest.mark.parametrize("offer", [b"http2-settings: AAMAAABk\r\n", b"sec-websocket-version: 13\r\n"])
async def test_a_request_that_offers_another_protocol_keeps_its_body(
    offer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with echoing() as port:
        offered = UPGRADE + offer + b"content-length: 3\r\n\r\n"
        plain = HEAD + b"content-length: 5\r\n\r\nabcde"
        for pieces in (
            [offered + b"abc" + plain],
            [offered, b"abc" + plain],
            [offered[:30], offered[30:], b"abc", plain],
        ):
            answer = await answer_to(port, *pieces)
            assert answer.count(b"HTTP/1.1 200 OK") == 2, answer
            assert (b"\r\n\r\n3" in answer, answer.endswith(b"\r\n\r\n5")) == (True, True)
        chunked = UPGRADE + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" + plain
        assert b"\r\n\r\n2HTTP/1.1 200 OK" in await answer_to(port, chunked)
    assert not caplog.records, "a client's choice is no line of the log"


@pytest.mark.parametrize("line", [b"connection: close, Upgrade\r\n", b"connection: Upgrade\r\nconnection: close\r\n"])
async def test_an_offer_takes_nothing_else_from_its_request(line: bytes) -> None:
    """A connection that is to be closed is closed, or this would wait for its end; the headers come once, and all."""

    async def tell(request: Request) -> PlainTextResponse:
        await request.body()
        told = [name for name, _ in request.headers.items()]
        return PlainTextResponse(f"{request.method} {request.url.path}?{request.url.query} {' '.join(told)}")

    async with echoing(tell) as port:
        head = b"POST /size?a=b HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nx-mine: 1\r\n" + line
        answer = await answer_to(port, head + b"content-length: 3\r\n\r\n", b"abc")
    names = "host upgrade x-mine " + "connection " * line.count(b"connection") + "content-length"
    assert answer.endswith(f"POST /size?a=b {names}".encode())


async def test_a_request_without_a_body_that_offers_another_protocol_is_answered() -> None:
    async with echoing() as port:
        answer = await answer_to(port, UPGRADE + b"\r\n" + HEAD + b"content-length: 1\r\n\r\na")
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert (await answer_to(port, UPGRADE.replace(b"1.1", b"1.0") + b"\r\n")).endswith(b"\r\n\r\n0")


async def test_a_tunnel_is_refused() -> None:
    async with echoing() as port:
        assert b" 400 " in (await answer_to(port, b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n")).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "pieces", [[], [b"POST /si"], [HEAD], [HEAD + b"content-length: 3\r\n\r\nab"], [CHUNKED + b"2\r\nab\r\n"]]
)
async def test_a_request_that_does_not_come_ends_its_connection(
    pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_protocol, "MAX_REQUEST_S", 0.02)
    async with echoing() as port:
        assert b"did not come within 0.02 seconds" in await answer_to(port, *pieces)


async def test_an_answer_under_way_is_not_ended_by_a_request_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    num_looks, end_slow_request = 0, BoundedProtocol._end_slow_request
    has_begun, has_looked = asyncio.Event(), asyncio.Event()

    def look(protocol: BoundedProtocol) -> None:
        nonlocal num_looks
        num_looks += 1
        end_slow_request(protocol)
        if num_looks == 3:
            has_looked.set()

    async def wait(request: Request) -> PlainTextResponse:
        monkeypatch.setattr(bounded_protocol, "MAX_REQUEST_S", 0.01)
        has_begun.set()
        await has_looked.wait()
        monkeypatch.setattr(bounded_protocol, "MAX_REQUEST_S", 60.0)
        return PlainTextResponse("first")

    monkeypatch.setattr(BoundedProtocol, "_end_slow_request", look)
    async with echoing(wait) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        whole = b"POST /size HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
        writer.write(whole)
        await has_begun.wait()
        writer.write(whole[:20])
        assert (await reader.readuntil(b"first")).startswith(b"HTTP/1.1 200 OK")
        writer.close()
