"""Times calls on a device: by its events on CUDA, by the host's clock on a CPU."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

_SYNC_WARNING = "called a synchronizing CUDA operation"


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of some calls: median, first and ninth decile."""

    num_calls: int
    ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def of(cls, calls_ms: list[float]) -> Times:
        ordered = sorted(calls_ms)
        count = len(ordered)
        return cls(count, median(ordered), ordered[count // 10], ordered[count - 1 - count // 10])

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 5) for name, value in asdict(self).items()}


def time_calls(
    call: Callable[[], object], device: torch.device, *, warm: int, most: int, within_s: float, least: int = 3
) -> Times:
    """Time `least` to `most` calls, as many as fit in `within_s`, after `warm` calls.

    On CUDA a call's time is from event to event on the device, so it includes waiting for the host.
    """
    is_cuda = device.type == "cuda"
    for _ in range(warm):
        call()
    one_s = _host_seconds(call, device)
    count = max(least, min(most, int(within_s / max(one_s, 1e-6))))
    if not is_cuda:
        return Times.of([_host_seconds(call, device) * 1e3 for _ in range(count)])
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    return Times.of([first.elapsed_time(second) for first, second in pairwise(events)])


def count_syncs(call: Callable[[], object], device: torch.device) -> int | None:
    """Return how often a call makes the host wait for the device; None on a CPU, which has no such waits."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(_SYNC_WARNING in str(warning.message) for warning in caught)


def _host_seconds(call: Callable[[], object], device: torch.device) -> float:
    start_s = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start_s
