"""Copies between host and device, as few as there can be: each that the host reads makes it wait for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return a copy of the array on the device, without waiting for the device."""
    host = torch.from_numpy(array)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def download(*tensors: torch.Tensor) -> list[npt.NDArray[np.float64]]:
    """Return the tensors on the host, each float64 in its shape, by one copy. Integers must be below 2**53."""
    joined = torch.cat([tensor.double().reshape(-1) for tensor in tensors]).cpu().numpy()
    parts = np.split(joined, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class Arrival:
    """A copy to the host that has begun: whatever is queued after it runs while the host waits for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        is_cuda = tensor.device.type == "cuda"
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_cuda)
        self._host.copy_(tensor, non_blocking=True)
        self._event: Any = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record()

    def read(self) -> npt.NDArray[Any]:
        """Return the tensor, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()
