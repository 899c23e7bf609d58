"""What the loader of a model or of a drafting head is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from minedraft.device import Device
from minedraft_workers.execution.memory import CacheSize


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Device, number format and kernels of a model, and the size of its KV cache.

    Attributes:
        device: the caller calls `pin(device)` before it loads.
        dtype: "float32", "bfloat16", or "auto": the fastest one on the device.
        kernels: one of `choice.KERNELS`, or "auto": the first of them that fits machine and model.
        max_model_len: tokens of a request; at most the model's context, which is the default.
        num_blocks, block_size, memory_share, max_requests: as of `CacheSize`.
    """

    device: Device
    dtype: str = "auto"
    kernels: str = "auto"
    max_model_len: int | None = None
    num_blocks: int | None = None
    block_size: int = 16
    memory_share: float | None = None
    max_requests: int | None = None

    def cache_size(self, context: int | None) -> CacheSize:
        """Return the size of the cache. context: tokens of the longest request; None if the model has no limit."""
        return CacheSize(self.num_blocks, self.block_size, self.memory_share, self.max_requests, context)
