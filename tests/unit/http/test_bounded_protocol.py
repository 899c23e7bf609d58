"""What the HTTP server reads before it refuses: real sockets, no application that would answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from minedraft.address import Address
from minedraft.http.bounded_protocol import MAX_TARGET_BYTES
from minedraft.http.guard import MAX_BODY_BYTES, MAX_HEADER_BYTES
from minedraft.http.serving import listen_at, make_server


@asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """Serve an application that returns the size of the body; yield its port."""

    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    http = make_server(Starlette(routes=[Route("/size", size, methods=["POST"])]))
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
