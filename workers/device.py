"""Binds a worker's process to its device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
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
        pin_threads(device.cores)
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
    make_exact()


def pin_threads(cores: Collection[int]) -> None:
    """Bind every thread of this process to the cores."""
    for thread_id in os.listdir("/proc/self/task"):
        # A thread can end between the listing and the call.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread_id), cores)


def make_exact() -> None:
    """Have CUDA's matmuls compute what their dtype says, whatever the environment or a library has set: float32
    without TF32, and bfloat16 with sums in float32."""
    import torch

    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def enter_thread(device: Device) -> None:
    """Make the device the current one of this thread. Each thread has its own, and begins with the first card.

    Args:
        device: as given to `pin`, which did the same for the main thread.
    """
    if device.kind == "cuda":
        import torch

        torch.cuda.set_device(device.index)
