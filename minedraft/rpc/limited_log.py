"""A log line that callers from outside can cause, and cannot repeat at will."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_INTERVAL_S = 10.0


class LimitedLog:
    """Writes a line at most every ten seconds; those in between are counted, and told with the next.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._quiet_until_s = float("-inf")
        self._num_unlogged = 0

    def log(self, level: int, text: str) -> None:
        now_s = self._clock()
        if now_s < self._quiet_until_s:
            self._num_unlogged += 1
            return
        others = f" ({self._num_unlogged} others before it were not logged)" if self._num_unlogged else ""
        self._logger.log(level, "%s%s", text, others)
        self._quiet_until_s, self._num_unlogged = now_s + _INTERVAL_S, 0
