"""Pings the supervisor, from the event loop and only while the process gets on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from minedraft.process.notify import Notifier

logger = logging.getLogger(__name__)

_PINGS_PER_LIMIT = 4
_UNWATCHED_PERIOD_S = 1.0
_LATE_S = 1.0


class ProgressLook(Protocol):
    """A look at a process: what tells one that gets on from one that hangs."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to get on with."""
        ...

    @property
    def count(self) -> int:
        """Differs from look to look while the work proceeds."""
        ...


@dataclass(frozen=True, slots=True)
class Unburdened:
    """The look at a process without work of its own: that its event loop turns is all that it has to do."""

    is_idle: bool = True
    count: int = 0


async def feed_watchdog(notifier: Notifier, look: Callable[[], ProgressLook]) -> None:
    """Ping while there is progress, or nothing to do; log when the event loop was blocked. Runs until cancelled.

    It must run in the event loop that does the work: a ping from another thread would prove nothing.
    """
    limit_s = notifier.watchdog_s
    period_s = _UNWATCHED_PERIOD_S if limit_s is None else limit_s / _PINGS_PER_LIMIT
    last_count = -1
    while True:
        progress = look()
        if limit_s is not None and (progress.is_idle or progress.count != last_count):
            notifier.ping()
        last_count = progress.count
        due_s = time.monotonic() + period_s
        await asyncio.sleep(period_s)
        if (late_s := time.monotonic() - due_s) > _LATE_S:
            logger.warning("the event loop was blocked, or the process not run, for %.1f s", late_s)
