"""Asks the supervisor for more time while a process loads, as long as the loading gets on."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from minedraft.process.notify import Notifier

_PERIOD_S = 2.0
_ALLOWED_S = 120.0  # without any progress: another process may be building what this one waits for
_LEAST_PROGRESS_S = 1e-3  # CPU time
_CLOCK_TICKS = 100  # of the times in /proc, per second: a constant of Linux's interface


class StartExtension:
    """A thread that extends the start while the block runs, whenever this process or a child has used CPU time.

    Loading is a sequence of library calls without an event loop, so a thread has to watch it. It measures the work
    instead of just being alive: a process that is stopped, or waits for something that never comes, is not extended.

    Args:
        doing: the status meanwhile.
    """

    def __init__(self, notifier: Notifier, doing: str) -> None:
        self._doing = doing
        self._notifier = notifier
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="start-extension", daemon=True)

    def __enter__(self) -> Self:
        self._notifier.status(self._doing)
        self._notifier.extend_timeout(_ALLOWED_S)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _run(self) -> None:
        last_s = 0.0
        while not self._ended.wait(_PERIOD_S):
            used_s = cpu_time_s()
            if used_s - last_s > _LEAST_PROGRESS_S:
                self._notifier.extend_timeout(_ALLOWED_S)
            last_s = used_s


def cpu_time_s() -> float:
    """Return the CPU seconds that this process and its running children have used."""
    return time.process_time() + sum(_child_cpu_s(pid) for pid in _children())


def _children() -> list[int]:
    pids: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            pids += [int(word) for word in path.read_text().split()]
    return pids


def _child_cpu_s(pid: int) -> float:
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15]) / _CLOCK_TICKS  # its own, and its ended children's
    return 0.0
