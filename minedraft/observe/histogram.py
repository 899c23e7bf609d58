"""Counts of values by size, cheap enough to be taken in the event loop."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts values by the smallest of `bounds` that they do not exceed, as Prometheus does.

    Args:
        bounds: ascending; one more counter takes what exceeds the last one.

    Attributes:
        total: the sum of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.total = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """Return, for each bound and for infinity, how many values do not exceed it."""
        return list(accumulate(self._counts))
