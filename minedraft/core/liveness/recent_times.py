"""The durations of the last commands, and how long nearly all of them take."""

from __future__ import annotations

from collections import deque


class RecentTimes:
    """The last durations, in seconds.

    Args:
        size: how many are remembered.
    """

    def __init__(self, size: int = 256) -> None:
        self._times: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._times)

    def add(self, seconds: float) -> None:
        self._times.append(seconds)

    @property
    def p99_s(self) -> float:
        """The time within which 99 of 100 were done; the longest of fewer than 100, 0 of none."""
        ordered = sorted(self._times)
        return ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)] if ordered else 0.0
