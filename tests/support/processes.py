"""What tests ask of other processes."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def until(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Poll a condition of other processes until it holds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    """Ended; whether somebody has reaped it is up to the machine's init."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
