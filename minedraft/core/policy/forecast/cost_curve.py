"""What a measured quantity costs by its size: means of measurements, with straight lines between them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from statistics import median_low

_RATE = 0.06  # weight of a new measurement once there are several
_MOST_JUMP = 1.5  # a measurement counts as at most this many times the mean, and at least one such part of it
_NUM_TRUSTED = 4  # measurements after which a mean bounds what comes; until then the lower median counts


class CostCurve:
    """Seconds by size (rows, requests, drafts), learnt from measurements.

    Sizes that are close together share a mean. Old measurements fade, and a single outlier moves a mean little, even if
    it comes first: what is rarely done would be taken for dear for long, and so be done still more rarely.
    """

    def __init__(self) -> None:
        self._means: dict[int, list[float]] = {}  # by bucket: number of measurements, mean size, mean seconds
        self._firsts: dict[int, list[float]] = {}  # by bucket: the first measurements
        self._points: list[tuple[float, float]] = []  # (size, seconds), in the order of sizes

    @property
    def is_known(self) -> bool:
        return bool(self._points)

    def covers(self, size: float) -> bool:
        """Whether sizes near this one were measured, or smaller and larger ones."""
        return self.is_known and self._points[0][0] / 1.2 <= size <= self._points[-1][0] * 1.2

    def count(self, size: float) -> int:
        """Return the number of measurements of about this size."""
        return int(self._means.get(_bucket(size), (0.0,))[0])

    def nearest(self, size: float) -> float:
        """Return the measured size nearest to this one; the curve is known."""
        return min((point[0] for point in self._points), key=lambda known: abs(known - size))

    def add(self, size: float, seconds: float) -> None:
        """Take a measurement. size: at least 1."""
        bucket = _bucket(size)
        mean = self._means.setdefault(bucket, [0.0, size, seconds])
        mean[0] += 1
        rate = max(1 / mean[0], _RATE)
        mean[1] += rate * (size - mean[1])
        if mean[0] <= _NUM_TRUSTED:
            firsts = self._firsts.setdefault(bucket, [])
            firsts.append(seconds)
            mean[2] = median_low(firsts)
        else:
            seconds = min(max(seconds, mean[2] / _MOST_JUMP), mean[2] * _MOST_JUMP)
            mean[2] += rate * (seconds - mean[2])
        self._points = _rising(sorted(self._means.values(), key=lambda m: m[1]))

    def at(self, size: float, slope: float = 0.0, least_slope: float = 0.0) -> float:
        """Return the seconds at a size; the curve is known.

        Args:
            slope: seconds a unit beyond the measured sizes, while only one was measured.
            least_slope: the least seconds a unit above them.
        """
        points = self._points
        first, last = points[0], points[-1]
        if len(points) > 1:
            # Over a wide span, because the noise of two near points makes any slope.
            far = next((point for point in reversed(points) if point[0] <= last[0] / 2), first)
            below, above = _slope(first, points[1]), max(_slope(far, last), least_slope)
        else:
            below, above = slope, max(slope, least_slope)
        if size <= first[0]:
            return max(first[1] - below * (first[0] - size), first[1] * min(size / first[0], 0.5))
        if size >= last[0]:
            return last[1] + above * (size - last[0])
        index = next(i for i, point in enumerate(points) if point[0] > size)
        left = points[index - 1]
        return left[1] + _slope(left, points[index]) * (size - left[0])


def _rising(means: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return (size, seconds) of means in the order of their sizes. More never costs less: means that say so are
    replaced by their common mean, as in isotonic regression."""
    blocks: list[tuple[float, float, list[float]]] = []  # weight, seconds, sizes
    for count, size, seconds in means:
        weight, sizes = min(count, 1 / _RATE), [size]
        while blocks and blocks[-1][1] > seconds:
            other, more, smaller = blocks.pop()
            seconds = (weight * seconds + other * more) / (weight + other)
            weight, sizes = weight + other, smaller + sizes
        blocks.append((weight, seconds, sizes))
    return [(size, seconds) for _, seconds, sizes in blocks for size in sizes]


def _bucket(size: float) -> int:
    return round(3 * log2(max(size, 1.0)))


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / max(right[0] - left[0], 1e-9)
