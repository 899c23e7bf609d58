"""Which kernels run a model here, with a KV cache in their layout."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from minedraft.device import Device
from minedraft.errors import ConfigError, ModelError
from minedraft_workers.device import torch_device
from minedraft_workers.execution.fused import FusedDecoder, check_structure
from minedraft_workers.execution.loading import LoadedModel, build_without_weights, choose_dtype, pack_for_torch
from minedraft_workers.execution.memory import CacheSize
from minedraft_workers.execution.programs import ProgramRunner
from minedraft_workers.execution.runner import Runner, TransformersRunner
from minedraft_workers.execution.selfcheck import record_layers
from minedraft_workers.execution.spans import ASKED_FOR, FITTING
from minedraft_workers.kernels.base import LayerKernels, NotFused, PagedCache
from minedraft_workers.kernels.kvcache import KVCache
from minedraft_workers.kernels.native_kernels import NativeLayerKernels
from minedraft_workers.kernels.tables import LayerShape
from minedraft_workers.kernels.torch_kernels import TorchLayerKernels

KERNELS = ("native", "triton", "torch", "transformers")
AnyKernels = LayerKernels[Any, Any, Any]
CacheT = TypeVar("CacheT")


def choose_native(name: str, device: Device) -> tuple[NativeLayerKernels | None, str]:
    """Return the native kernels, or None for what comes after them, and why.

    Args:
        name: one of KERNELS, or "auto": native where this machine has them.

    Raises:
        ConfigError: native kernels were asked for and cannot be had, Triton's for a CPU, or the name is unknown.
    """
    if name not in ("auto", *KERNELS):
        raise ConfigError("kernels", name, f"must be auto, {', '.join(KERNELS[:-1])} or {KERNELS[-1]}")
    if name == "triton" and device.kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError("kernels", name, f"run on a GPU, not on {device}")
    if name not in ("auto", "native"):
        return None, ASKED_FOR
    if name == "auto" and device.kind != "cpu":
        return None, FITTING if _has_triton() else "Triton is not installed"
    try:
        if device.kind != "cpu":
            raise ConfigError("kernels", name, f"native kernels run on a CPU, not on {device}")
        native = NativeLayerKernels(num_threads=max(len(device.cores), 1))
    except ConfigError as error:
        if name == "native":
            raise
        return None, f"no native kernels here: {error.limit}"
    return native, native.refused or (ASKED_FOR if name == "native" else FITTING)


def list_candidates(
    name: str, native: NativeLayerKernels | None, device: Device, at: torch.device, dtype: torch.dtype
) -> list[AnyKernels]:
    """Return the layers' kernels to try, the best first; transformers' own code comes after them.

    Args:
        at: where the weights are: on `device`, or nowhere if the choice is only foreseen ("meta").

    Raises:
        ConfigError: Triton's were asked for and it is not installed.
    """
    candidates: list[AnyKernels] = [] if native is None else [native]
    if name == "triton" or (name == "auto" and device.kind == "cuda" and _has_triton()):
        candidates.append(_make_triton(at, dtype))
    if name in ("auto", "torch"):
        candidates.append(TorchLayerKernels(at, dtype))
    return candidates


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _make_triton(device: torch.device, dtype: torch.dtype) -> AnyKernels:
    if not _has_triton():
        raise ConfigError("kernels", "triton", "needs the package triton, which a torch for CUDA brings along")
    from minedraft_workers.kernels.triton_kernels import TritonLayerKernels

    return TritonLayerKernels(device, dtype)


def foresee_kernels(model_dir: Path, *, dtype: str, kernels: str, device: Device) -> str:
    """Return in one line what the model will run on, as far as can be seen without its weights.

    Raises:
        ModelError: as `build_without_weights`. ConfigError: as `choose_native`, or the native kernels were asked
            for and do not fit the model.
    """
    native, reason = choose_native(kernels, device)
    number_format = choose_dtype(dtype, torch_device(device), native)
    model = build_without_weights(model_dir, number_format)
    for candidate in list_candidates(kernels, native, device, torch.device("meta"), number_format):
        try:
            _find_layers(model, candidate, model_dir)
        except (NotFused, ModelError) as error:
            if kernels == candidate.name.split()[0] != "torch":
                raise ConfigError("kernels", kernels, f"do not fit this model: {error}") from error
            reason = f"{candidate.name} kernels do not fit this model: {error}"
            continue
        return say_choice(candidate.name, candidate.is_batch_invariant, number_format, reason)
    return say_choice(TransformersRunner.kernels, TransformersRunner.is_batch_invariant, number_format, reason)


def say_choice(name: str, is_batch_invariant: bool, dtype: torch.dtype, reason: str) -> str:
    """Return the choice of kernels in one line."""
    invariance = "do not depend" if is_batch_invariant else "may depend"
    number_format = str(dtype).removeprefix("torch.")
    return f"{name} kernels, {number_format}: {reason}; a request's tokens {invariance} on the batch it is in"


def make_fused(
    loaded: LoadedModel, kernels: AnyKernels, model_dir: Path, size: CacheSize
) -> FusedDecoder[Any, Any, Any]:
    """Return the model on these kernels, with its cache.

    Raises:
        NotFused: the model has a part that is not fused. ModelError: as `record_layers`.
        ConfigError: the cache does not fit.
    """
    model = loaded.model
    layers = _find_layers(model, kernels, model_dir)

    def make_cache() -> PagedCache[Any]:
        bytes_per_block = kernels.block_bytes(layers, size.block_size, model.dtype)
        count = size.choose_blocks(bytes_per_block, model.device)
        return allocate_cache(
            lambda: kernels.make_cache(layers, count, size.block_size, model.dtype), count, bytes_per_block
        )

    return FusedDecoder(model, kernels, make_cache, size.max_model_len)


def _find_layers(model: PreTrainedModel, kernels: AnyKernels, model_dir: Path) -> list[LayerShape]:
    """Return what each layer caches. Raise NotFused or ModelError unless the kernels fit the model."""
    check_structure(model)
    layers, specials = record_layers(model, model_dir)
    if specials:
        raise NotFused(", ".join(sorted(specials)))
    kernels.check(layers, model.dtype)
    return layers


def with_few_calls(decoder: FusedDecoder[Any, Any, Any], kernels: AnyKernels, max_model_len: int | None) -> Runner:
    """Return what runs the decoder's forwards of few rows in one call: a recorded program, or a CUDA graph."""
    if isinstance(kernels, NativeLayerKernels):
        return ProgramRunner(decoder, kernels)
    if decoder.kernels != "triton" or decoder.device.type != "cuda":
        return decoder
    from minedraft_workers.execution.graphs.capture import CudaGraphs
    from minedraft_workers.execution.graphs.model import GraphRunner

    pool = decoder.tables.pool
    return GraphRunner(decoder, max_model_len or pool.num_blocks * pool.block_size, CudaGraphs())


def make_transformers(
    loaded: LoadedModel, device: Device, model_dir: Path, size: CacheSize
) -> tuple[TransformersRunner, LoadedModel]:
    """Return the model in transformers' own code, with its cache; its weights are packed in place.

    Raises:
        ModelError: as `record_layers`. ConfigError: the cache does not fit.
    """
    packed = pack_for_torch(loaded)
    layers, _ = record_layers(packed.model, model_dir)
    dtype, target = packed.model.dtype, torch_device(device)
    bytes_per_block = KVCache.block_bytes(layers, size.block_size, dtype)
    count = size.choose_blocks(bytes_per_block, target)
    cache = allocate_cache(
        lambda: KVCache(layers, num_blocks=count, block_size=size.block_size, dtype=dtype, device=target),
        count,
        bytes_per_block,
    )
    return TransformersRunner(packed.model, cache), packed


def allocate_cache(make: Callable[[], CacheT], num_blocks: int, bytes_per_block: int) -> CacheT:
    """Return the cache that `make` makes, of so many blocks. Raise ConfigError if it does not fit."""
    try:
        return make()
    except (MemoryError, OSError, torch.OutOfMemoryError) as error:
        raise _too_large(num_blocks, bytes_per_block) from error


def _too_large(num_blocks: int, bytes_per_block: int) -> ConfigError:
    limit = f"needs {num_blocks * bytes_per_block / 1e9:.0f} GB of KV cache, more than this device has"
    return ConfigError("num_blocks", num_blocks, limit)
