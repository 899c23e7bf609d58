"""One profiled forward: how many kernels it launches, and for what share of its time the device works."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def profile_forward(forward: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return launches, milliseconds on the device and on the host, and the device's busy share.

    On a CPU there are no launches; `num_ops` counts torch's operators on either device. The profiler slows the
    host down, so the busy share is a lower limit.
    """
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    forward()
    with profile(activities=activities) as profiler:
        start_s = time.perf_counter()
        forward()
        if is_cuda:
            torch.cuda.synchronize(device)
        host_ms = (time.perf_counter() - start_s) * 1e3
    events = profiler.events() or []
    on_device = [event for event in events if event.device_type.name == "CUDA"]
    device_ms = sum(event.time_range.elapsed_us() for event in on_device) / 1e3
    return {
        "num_ops": sum(event.name.startswith("aten::") for event in events),
        "launches": len(on_device) if is_cuda else None,
        "device_ms": round(device_ms, 4) if is_cuda else None,
        "host_ms": round(host_ms, 4),
        "device_busy": round(device_ms / host_ms, 4) if is_cuda else None,
    }
