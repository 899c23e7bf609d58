"""Whether a process still says that it gets on: pure, fed with its notifications and with looks at a clock."""

from __future__ import annotations

from minedraft.core.liveness.stall import Stall

_MAX_EXTENSION_USEC = 10**12
_EXTENSION = "EXTEND_TIMEOUT_USEC="


class PingWatch:
    """The state of one process, from what it notifies (sd_notify).

    A process is watched from READY=1 to STOPPING=1: within `limit_s` it must send WATCHDOG=1. While it loads, it is
    watched once it has sent EXTEND_TIMEOUT_USEC, by the time that it asked for.

    Args:
        limit_s: seconds of silence; 0 watches nothing.

    Attributes:
        is_ready, is_stopping: whether the process has said so.
        status: the process's last STATUS.
    """

    def __init__(self, limit_s: float) -> None:
        self.is_ready = False
        self.is_stopping = False
        self.status = ""
        self._limit_s = limit_s
        self._num_signs = 0
        self._allowed_s = 0.0  # silence allowed at present; 0: not watched
        self._stall = Stall(longest_gap_s=0.0)

    def hear(self, message: str) -> None:
        """Take one notification: lines of NAME=VALUE. Unknown ones are ignored."""
        for line in message.splitlines():
            if line.startswith("STATUS="):
                self.status = line.removeprefix("STATUS=")
            elif line == "STOPPING=1":
                self.is_stopping = True
            elif line == "READY=1":
                self.is_ready = True
                self._allow(self._limit_s)
            elif line == "WATCHDOG=1" and self.is_ready:
                self._allow(self._limit_s)
            elif line.startswith(_EXTENSION) and not self.is_ready:
                self._extend(line.removeprefix(_EXTENSION))

    def is_overdue(self, now_s: float) -> bool:
        """Look at the clock. Return whether the process has been silent for too long. Call it several times within
        the limit.

        Args:
            now_s: monotonic clock.
        """
        is_watched = self._allowed_s > 0 and not self.is_stopping
        return self._stall.look(now_s, self._num_signs, is_idle=not is_watched) >= self._allowed_s and is_watched

    def describe(self) -> str:
        """Say for how long the process was silent."""
        return f"no progress for {self._stall.stalled_s:.0f} s"

    def _extend(self, text: str) -> None:
        if text.isascii() and text.isdigit() and self._limit_s > 0:
            self._allow(min(int(text), _MAX_EXTENSION_USEC) / 1e6)

    def _allow(self, seconds: float) -> None:
        """Take a sign of life, after which the process may be silent for so long."""
        self._num_signs += 1
        if seconds != self._allowed_s:
            self._allowed_s = seconds
            self._stall = Stall(longest_gap_s=seconds / 4)
