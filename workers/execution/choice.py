"""Which kernels run a model here, and the memory that their KV cache gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from minedraft.device import Device
from minedraft.errors import ConfigError
from minedraft_workers.device import torch_device
from minedraft_workers.execution.fused import FusedDecoder, NativeCache, NotFused, block_bytes, check_structure
from minedraft_workers.execution.kvcache import KVCache
from minedraft_workers.execution.loading import LoadedModel, pack_for_torch
from minedraft_workers.execution.memory import available_memory
from minedraft_workers.execution.runner import TorchRunner
from minedraft_workers.execution.selfcheck import record_layers
from minedraft_workers.execution.tables import LayerShape
from minedraft_workers.native.kernels import NativeKernels

# Shares of the memory that is free once the weights are loaded. On a GPU the rest is for activations; on the
# CPU two workers share the memory, and one may look before the other has loaded its weights.
_CUDA_KV_SHARE = 0.8
_CPU_KV_SHARE = 0.125


def choose_kernels(name: str, device: Device) -> tuple[NativeKernels | None, str]:
    """Return the native kernels, or None for torch's operators, and why.

    Args:
        name: "native", "torch", or "auto": native where this machine has them.

    Raises:
        ConfigError: native kernels were asked for and cannot be had, or the name is unknown.
    """
    if name not in ("auto", "native", "torch"):
        raise ConfigError("kernels", name, "must be auto, native or torch")
    if name == "torch":
        return None, "asked for"
    try:
        if device.kind != "cpu":
            raise ConfigError("kernels", name, f"native kernels run on a CPU, not on {device}")
        native = NativeKernels(num_threads=max(len(device.cores), 1))
    except ConfigError as error:
        if name == "native":
            raise
        return None, f"no native kernels here: {error.limit}"
    return native, "asked for" if name == "native" else "they fit this machine and model"


def make_fused(
    loaded: LoadedModel,
    native: NativeKernels,
    model_dir: Path,
    num_blocks: int | None,
    block_size: int,
    max_model_len: int | None,
) -> FusedDecoder:
    """Return the model on native kernels, with its cache.

    Raises:
        NotFused: the model has a part that is not fused. ModelError: as `record_layers`.
        ConfigError: the cache does not fit.
    """
    check_structure(loaded.model)
    layers, specials = record_layers(loaded.model, model_dir)
    if specials:
        raise NotFused(", ".join(sorted(specials)))
    dtype = loaded.model.dtype
    bytes_per_block = block_bytes(layers, block_size, dtype)
    count = _choose_blocks(num_blocks, bytes_per_block, block_size, torch.device("cpu"))
    try:
        cache = NativeCache(layers, count, block_size, dtype)
    except (MemoryError, OSError) as error:
        raise _too_large(count, bytes_per_block) from error
    capacity = count * block_size
    context = capacity if max_model_len is None else min(max_model_len, capacity)
    return FusedDecoder(loaded.model, cache, native, context)


def make_torch(
    loaded: LoadedModel, device: Device, model_dir: Path, num_blocks: int | None, block_size: int
) -> tuple[TorchRunner, LoadedModel]:
    """Return the model on torch's operators, with its cache; its weights are packed in place.

    Raises:
        ModelError: as `record_layers`. ConfigError: the cache does not fit.
    """
    packed = pack_for_torch(loaded)
    layers, _ = record_layers(packed.model, model_dir)
    return TorchRunner(packed.model, _make_cache(layers, num_blocks, block_size, packed.model, device)), packed


def _make_cache(
    layers: Sequence[LayerShape], num_blocks: int | None, block_size: int, model: torch.nn.Module, owner: Device
) -> KVCache:
    dtype, device = next(model.parameters()).dtype, torch_device(owner)
    bytes_per_block = KVCache.block_bytes(layers, block_size, dtype)
    count = _choose_blocks(num_blocks, bytes_per_block, block_size, device)
    try:
        return KVCache(layers, num_blocks=count, block_size=block_size, dtype=dtype, device=device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large(count, bytes_per_block) from error


def _too_large(num_blocks: int, bytes_per_block: int) -> ConfigError:
    limit = f"needs {num_blocks * bytes_per_block / 1e9:.0f} GB of KV cache, more than this device has"
    return ConfigError("num_blocks", num_blocks, limit)


def _choose_blocks(num_blocks: int | None, bytes_per_block: int, block_size: int, device: torch.device) -> int:
    """Return the blocks asked for, or as many as fit in the KV cache's share of the free memory."""
    if num_blocks is not None:
        if num_blocks < 1:
            raise ConfigError("num_blocks", num_blocks, "must be 1 or more")
        return num_blocks
    if device.type == "cuda":
        kv_bytes = int(torch.cuda.mem_get_info(device)[0] * _CUDA_KV_SHARE)
    else:
        kv_bytes = int(available_memory() * _CPU_KV_SHARE)
    if kv_bytes < bytes_per_block:
        limit = f"one block of {block_size} tokens needs {bytes_per_block} bytes, the memory has room for {kv_bytes}"
        raise ConfigError("num_blocks", None, limit)
    return kv_bytes // bytes_per_block
