"""Reports the state of the process to its supervisor (sd_notify): systemd, or the launcher. Never raises."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)

_PATIENCE_S = 1.0

READY_LINE = "ready on "
"""Begins the line that the launcher prints once requests are accepted; programs wait for this line."""


class Notifier:
    """Sends to the socket in NOTIFY_SOCKET; does nothing without one.

    Its variables are removed from the environment: children must not notify for this process.

    Attributes:
        watchdog_s: seconds within which the supervisor expects a ping; None if it expects none.
    """

    def __init__(self) -> None:
        self._path = os.environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_s = _take_watchdog() if self._path else None

    def ready(self) -> None:
        self._send("READY=1", _PATIENCE_S)

    def ping(self) -> None:
        """Say that the process gets on; see `feed_watchdog`."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Send one line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping", _PATIENCE_S)

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this much more time before the start or the stop counts as hung."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, line: str, patience_s: float = 0.0) -> None:
        """Send a line. If the supervisor has not read the last ones, wait so long for room, then drop it: what comes
        again can be dropped, and a supervisor that reads nothing has signs of life enough."""
        if not self._path:
            return
        # "@" stands for the zero byte of an abstract socket.
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(patience_s)
                sender.sendto(line.encode(), address)
        except (BlockingIOError, TimeoutError):
            logger.debug("the supervisor has not read the last notifications: %s is dropped", line)
        except OSError as error:
            logger.warning("the supervisor could not be notified: %s", error)


def _take_watchdog() -> float | None:
    """Return the seconds in WATCHDOG_USEC, if they are for this process."""
    text, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    is_for_us = pid in ("", str(os.getpid()))
    return int(text) / 1e6 if is_for_us and text.isascii() and text.isdigit() and int(text) > 0 else None
