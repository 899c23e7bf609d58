"""uvicorn's HTTP/1.1 protocol on httptools, with a bound on what it reads before the application decides.

Parsing and framing by httptools take a fraction of the time that h11 takes in Python, and that time is taken from the
cores that the models run on. httptools itself reads a header without end.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from minedraft.http.guard import MAX_HEADER_BYTES

MAX_TARGET_BYTES = 8 << 10


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request has more than MAX_HEADER_BYTES of headers or trailers, or a longer target than
    MAX_TARGET_BYTES, and nothing else.

    Attributes of uvicorn's protocol that it relies on: `transport`, and the parser's callbacks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (as its base class)
        super().__init__(*args, **kwargs)
        self._num_unread = 0  # bytes since the last thing that the parser has passed on, or of headers
        self._is_refused = False

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._num_unread += len(data)
        super().data_received(data)
        if self._num_unread > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._is_refused = True
            self.send_400_response(f"The headers have more than {MAX_HEADER_BYTES} bytes.")

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            raise ValueError(f"the target has more than {MAX_TARGET_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._num_unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_unread = 0
        super().on_message_complete()
