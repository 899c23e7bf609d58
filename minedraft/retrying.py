"""When a client sends a refused generation again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from minedraft.errors import MineDraftError

_SPREAD = 0.25
"""Clients that were refused together come back within this share of their hint."""


class Patience:
    """The time that one generation has, for all its tries together.

    Args:
        patience_s: seconds in which it is sent again after a refusal that has a hint when to try.
        timeout_s: the deadline of the whole generation, in seconds; None for none.
        clock: monotonic seconds.
    """

    def __init__(self, patience_s: float, timeout_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start_s = clock()
        self._patience_s = patience_s
        self._timeout_s = timeout_s

    def end(self) -> None:
        """Send it no more: the caller has a piece of the answer, and another try could begin it anew."""
        self._patience_s = 0.0

    def timeout_s(self) -> float | None:
        """Return the seconds left until the deadline; None for no deadline."""
        return None if self._timeout_s is None else max(self._timeout_s - self._elapsed_s(), 0.0)

    def delay_s(self, error: MineDraftError) -> float | None:
        """Return the seconds to wait until the next try; None if the error is the answer."""
        if error.retry_after_s is None:
            return None
        delay_s = error.retry_after_s * random.uniform(1.0, 1.0 + _SPREAD)
        return delay_s if self._elapsed_s() + delay_s < self._patience_s else None

    def _elapsed_s(self) -> float:
        return self._clock() - self._start_s
