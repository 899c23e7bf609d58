"""Binds a worker's process to its device."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from minedraft.device import Device
from minedraft.errors import ConfigError

if TYPE_CHECKING:
    import torch


def torch_device(device: Device) -> torch.device:
    """Return torch's device; to torch all cores of a CPU are one device."""
    import torch

    return torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")


def pin(device: Device) -> None:
    """Make this process run on the device only. Call it before torch starts its threads.

    On the CPU every thread of the process is bound to the cores and torch uses as many threads as
    there are cores; on CUDA the device becomes the current one.

    Args:
        device: as returned by `Device.here`.

    Raises:
        ConfigError: there is no such CUDA device.
    """
    if device.kind == "cpu":
        assert device.cores, "Device.here fills in the cores"
        for thread_id in os.listdir("/proc/self/task"):
            # A thread can end between the listing and the call.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread_id), device.cores)
    import torch

    if device.kind == "cpu":
        torch.set_num_threads(len(device.cores))
        # torch allows this call only once per process.
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.index >= count:
        raise ConfigError("device", str(device), f"torch found {count} CUDA devices")
    torch.cuda.set_device(device.index)
