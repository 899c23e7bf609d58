"""A relay between clients and a service, whose connections can be cut."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


class Relay:
    """Listens on a socket of its own and passes bytes on, both ways.

    Args:
        path: of its own socket. to: of the service's.
    """

    def __init__(self, path: Path, to: Path) -> None:
        self.address = f"unix:{path}"
        self._path = path
        self._to = to
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """End every connection at once, in the middle of whatever it carries."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_unix_connection(str(self._to))
        except OSError:  # nobody listens there at present
            writer.close()
            return
        ends = {writer, forth}
        self._open |= ends
        try:
            await asyncio.gather(_pump(reader, forth), _pump(back, writer))
        finally:
            self._open -= ends
            for end in ends:
                end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()
