"""Passes the service's metrics on, so that one address has all that a scraper or a balancer asks for."""

from __future__ import annotations

import asyncio

from minedraft.address import Address
from minedraft.errors import Unavailable

_TIMEOUT_S = 5.0
_MAX_BYTES = 8 << 20


class MetricsProxy:
    """Reads the page that the scheduler exports.

    Args:
        address: where it does.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    async def read(self) -> bytes:
        """Return the page.

        Raises:
            Unavailable: there is no answer, or another one than a page.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(self._address.host, self._address.port)
                try:
                    # HTTP/1.0: the page ends where the connection does.
                    writer.write(f"GET /metrics HTTP/1.0\r\nHost: {self._address}\r\n\r\n".encode())
                    answer = await reader.read(_MAX_BYTES)
                    while (more := await reader.read(_MAX_BYTES)) and len(answer) < _MAX_BYTES:
                        answer += more
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"the service's metrics at {self._address} cannot be read: {error}") from None
        head, _, page = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise Unavailable(f"the service's metrics at {self._address} cannot be read")
        return page
