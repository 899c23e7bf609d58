"""What the processes of a service hold over time, and how it grows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from scripts.lib.chaos.service import Footprint, Processes

_EVERY_S = 2.0
_HOUR_S = 3600.0
_SETTLED_SHARE = 1 / 3  # of a process's life: the growth of its first part is that of caches that fill


class Growth:
    """Samples of every process. A process that was replaced begins a series of its own."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._series: dict[tuple[str, int], list[Footprint]] = {}

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_S)

    def look(self) -> None:
        for role, seen in self._processes.footprints().items():
            self._series.setdefault((role, seen.pid), []).append(seen)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return for each role the growth per hour of its longest-lived process, and the values in that time."""
        longest: dict[str, list[Footprint]] = {}
        for (role, _), series in self._series.items():
            if len(series) > len(longest.get(role, ())):
                longest[role] = series
        return {role: _summarise(series) for role, series in longest.items()}


def _summarise(series: Sequence[Footprint]) -> dict[str, Any]:
    settled = series[int(len(series) * _SETTLED_SHARE) :]
    times = [seen.at_s for seen in settled]
    figures: dict[str, Any] = {"seconds": round(series[-1].at_s - series[0].at_s, 1)}
    for name in ("rss_mb", "num_fds", "num_threads"):
        values = [float(getattr(seen, name)) for seen in series]
        slope = slope_per_s(times, values[-len(settled) :]) * _HOUR_S
        figures[name] = {
            "first": round(values[-len(settled)], 1),
            "last": round(values[-1], 1),
            "most": round(max(values[-len(settled) :]), 1),
            "slope_per_hour": round(slope, 2),
        }
    return figures


def slope_per_s(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the line of least squares; 0 for fewer than three points."""
    if len(times) < 3:
        return 0.0
    mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - mean_t) ** 2 for t in times)
    along = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values, strict=True))
    return along / spread if spread else 0.0
