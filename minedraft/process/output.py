"""Writes lines without waiting for their reader: what does not fit now is dropped and counted."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

_PIECE_BYTES = select.PIPE_BUF  # a pipe that can be written to has room for so much


class LossyWriter:
    """Lines to a stream of this process. A full disk, a closed terminal and a pipe that nobody reads cost lines, never
    an exception or a wait: work must not stop because it cannot be told.

    The line after dropped ones says how many they were.

    Args:
        stream: standard output or error; one without a descriptor is written to as it is.
        describe_dropped: returns the line about so many lines that were dropped.

    Attributes:
        num_dropped: all lines dropped so far.
    """

    def __init__(self, stream: TextIO, describe_dropped: Callable[[int], str]) -> None:
        self.num_dropped = 0
        self._stream = stream
        self._describe_dropped = describe_dropped
        self._num_told = 0
        self._is_inside_line = False
        self._fd: int | None = None
        with suppress(OSError, ValueError):  # not a file, or closed
            self._fd = stream.fileno()
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)

    def write_line(self, text: str) -> bool:
        """Write a line. Return whether it was written."""
        if self.num_dropped > self._num_told and self._put(self._describe_dropped(self.num_dropped - self._num_told)):
            self._num_told = self.num_dropped
        is_written = self._put(text)
        self.num_dropped += not is_written
        return is_written

    def _put(self, text: str) -> bool:
        try:
            if self._fd is None:
                self._stream.write(f"{text}\n")
                self._stream.flush()
                return True
            return self._put_bytes(self._fd, f"{text}\n".encode(errors="backslashreplace"))
        except (OSError, ValueError):
            return False

    def _put_bytes(self, fd: int, data: bytes) -> bool:
        if self._is_inside_line:
            data = b"\n" + data
        while data:
            if not self._can_write():
                return False
            num_written = os.write(fd, data[:_PIECE_BYTES])
            data = data[num_written:]
            self._is_inside_line = bool(data)
        return True

    def _can_write(self) -> bool:
        return any(state & select.POLLOUT for _, state in self._poll.poll(0))
