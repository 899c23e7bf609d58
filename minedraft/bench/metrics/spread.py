"""Figures of many values: mean, standard deviation and percentiles, as numpy and vLLM's benchmark compute them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, pstdev, quantiles

STATISTICS = ("mean", "median", "std", "p50", "p90", "p99")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the value of each of STATISTICS, zeros without values. Percentiles are interpolated linearly; "p50" is
    the median by another name."""
    if not values:
        return dict.fromkeys(STATISTICS, 0.0)
    percents = quantiles(values, n=100, method="inclusive") if len(values) > 1 else list(values) * 99
    middle = float(median(values))
    return {
        "mean": fmean(values),
        "median": middle,
        "std": pstdev(values),
        "p50": middle,
        "p90": percents[89],
        "p99": percents[98],
    }
