"""Waits for other processes, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def until(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Poll a condition of other processes until it holds; fail after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    """Return whether the process has ended; it may still wait for the machine's init to reap it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
