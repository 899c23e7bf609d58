"""Makes a worker's process run on its device."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from minedraft.device import Device
from minedraft.errors import ConfigError

if TYPE_CHECKING:
    import torch


def torch_device(device: Device) -> torch.device:
    """The device as torch names it: the cores of a CPU are one device to it."""
    import torch

    return torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")


def pin(device: Device) -> None:
    """Make this process run on the device only. Call it before torch starts its threads.

    On the CPU every thread of the process is bound to the cores and torch uses as many threads as
    there are cores; on CUDA the device becomes the current one.

    Args:
        device: one that is here (`Device.here`).

    Raises:
        ConfigError: there is no such CUDA device.
    """
    if device.kind == "cpu":
        assert device.cores, "its cores are named"
        for thread_id in os.listdir("/proc/self/task"):
            # A thread can end between the listing and the call.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread_id), device.cores)
    import torch

    if device.kind == "cpu":
        torch.set_num_threads(len(device.cores))
        # torch allows this once; a second call would find the value already set.
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.index >= count:
        raise ConfigError("device", str(device), f"torch sees {count} CUDA devices here")
    torch.cuda.set_device(device.index)
