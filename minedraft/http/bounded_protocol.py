"""uvicorn's HTTP/1.1 protocol on httptools, with bounds on what it reads before the application decides.

Parsing and framing by httptools take a fraction of the time that h11 takes in Python, and that time is taken from the
cores that the models run on. httptools itself reads a header without end, waits for one without end, and loses the body
of a request that offers another protocol.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from minedraft.http.guard import MAX_HEADER_BYTES

MAX_TARGET_BYTES = 8 << 10
MAX_REQUEST_S = 60.0
"""Seconds within which a whole request must come, from its connection or its first byte on."""
_FRAMING_HEADERS = (b"content-length", b"transfer-encoding")


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request has more than MAX_HEADER_BYTES of headers or trailers, or a longer target than
    MAX_TARGET_BYTES, or does not come within MAX_REQUEST_S, and nothing else. An offer to go on by another protocol,
    which Java's client makes with the first request (`Upgrade: h2c`), is not taken up: the request is answered.

    Attributes of uvicorn's protocol that it relies on: `transport`, `loop`, `flow`, `cycle`, `parser`, `url`,
    `headers`, `_should_upgrade`, and the parser's callbacks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (as its base class)
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)
        self._num_unread = 0  # bytes since the last thing that the parser has passed on, or of headers
        self._is_refused = False
        self._is_told_length = False  # while a parser is told what another one has read
        self._timer = self.loop.call_later(MAX_REQUEST_S, self._end_slow_request)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._num_unread += len(data)
        super().data_received(data)
        if self._num_unread > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._is_refused = True
            self.send_400_response(f"The headers have more than {MAX_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        if not self._is_told_length:
            self._restart_timer()
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._is_told_length:
            return
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            raise ValueError(f"the target has more than {MAX_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_told_length:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._num_unread = 0
        if not self._is_told_length:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_unread = 0
        if not self._offers_upgrade:  # else the parser has read the headers alone
            self._timer.cancel()
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return False

    @property
    def _offers_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def go_on_without_upgrade(self, rest: bytes) -> None:
        """Read the body of the request whose headers have just come, and what follows it: by a parser that is told how
        long the body is, and of no offer."""
        lines = [b"%s: %s" % header for header in self.headers if header[0] in _FRAMING_HEADERS]
        self.parser = _Parser(self)
        self._is_told_length = True
        self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""]))
        self._is_told_length = False
        self.parser.feed_data(rest)

    def _restart_timer(self) -> None:
        self._timer.cancel()
        self._timer = self.loop.call_later(MAX_REQUEST_S, self._end_slow_request)

    def _end_slow_request(self) -> None:
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete and not cycle.more_body
        if is_answering or self.flow.read_paused:  # another answer of this connection, or nothing is read from it now
            self._restart_timer()
        elif not self.transport.is_closing():
            self._is_refused = True
            self.send_400_response(f"The request did not come within {MAX_REQUEST_S:g} seconds.")


class _Parser(httptools.HttpRequestParser):
    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own: pipelined requests

    def feed_data(self, data: Any) -> None:  # noqa: ANN401 (as its base class: any bytes)
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._protocol.go_on_without_upgrade(data[upgrade.args[0] :])
