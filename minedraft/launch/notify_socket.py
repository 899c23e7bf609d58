"""The socket that a child notifies its launcher through, in the protocol that systemd has for it (sd_notify)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MAX_BYTES = 4096
_CREDENTIALS = struct.Struct("3i")  # process, user and group id of the sender


class NotifySocket:
    """Receives the notifications of one child after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        old_mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(old_mask)

    def fileno(self) -> int:
        """Return the descriptor, for the event loop to wait on."""
        return self._socket.fileno()

    def receive(self, pid: int) -> Iterator[str]:
        """Yield the messages that have arrived from process `pid`. Those of others are dropped: of a predecessor, or
        of a process that inherited the variable."""
        with suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(_MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
                if _sender(ancillary) == pid:
                    yield data.decode(errors="replace")

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            pid: int = _CREDENTIALS.unpack_from(data)[0]
            return pid
    return 0
