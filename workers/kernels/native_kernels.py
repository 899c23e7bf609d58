"""The layer kernels in C++, with the cache and the plan of a forward that they read."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from minedraft_workers.kernels.base import NotFused, PagedCache
from minedraft_workers.kernels.tables import LayerShape, QuerySpan
from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.library import ISA_VARIABLE, REFUSED, refused_isas
from minedraft_workers.native.pooled import KernelPool as KernelPool
from minedraft_workers.native.program import Program as Program
from minedraft_workers.native.tensors import STRIP, LayerCache, PackedWeight, huge_zeros, lossless_dtype
from minedraft_workers.native.tensors import SpanPlan as SpanPlan


class NativeCache(PagedCache[LayerCache]):
    """Keys and values in the kernels' layout. Free blocks need not be cleared: nothing unwritten is read."""

    def __init__(self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        super().__init__(layers, num_blocks, block_size)
        self.layer_caches = [_make_layer_cache(shape, num_blocks, block_size, dtype) for shape in layers]

    def _copy(self, source: int, target: int) -> None:
        for cache in self.layer_caches:
            for numbers in (cache.keys, cache.values):
                blocks = numbers.view(cache.num_blocks, -1)
                blocks[target] = blocks[source]


class NativeLayerKernels(NativeKernels):
    """`NativeKernels` as the layers' kernels: a row's result depends on that row's request alone."""

    is_batch_invariant = True

    def __init__(self, isa: str = "auto", num_threads: int = 1) -> None:
        super().__init__(isa, num_threads)
        self._results: dict[tuple[str, int, int, torch.dtype], torch.Tensor] = {}

    def _new(self, kernel: str, num_rows: int, num_columns: int, dtype: torch.dtype) -> torch.Tensor:
        """Of what a decoder's layers record, share the memory: a kernel's result is used up before the same kernel
        makes another of its size, and memory that stays in the core's cache costs nothing."""
        if self._recorded is None:
            return super()._new(kernel, num_rows, num_columns, dtype)
        key = kernel, num_rows, num_columns, dtype
        if key not in self._results:
            self._results[key] = super()._new(*key)
        return self._results[key]

    @property
    def name(self) -> str:
        return f"native {self.isa}"

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether there is an instruction for it; else bfloat16 is widened first, which costs more than it saves."""
        return self.isa in ("avx512_bf16", "amx_bf16")

    @property
    def refused(self) -> str | None:
        """What this process would compute with if the operating system let it, with what it says; or None."""
        isas = [] if os.environ.get(ISA_VARIABLE) else refused_isas(self.pool.library)
        return f"{isas[-1]} is left out: {REFUSED}" if isas else None

    def check(self, layers: Sequence[LayerShape], dtype: torch.dtype) -> None:
        """Implements `LayerKernels`."""
        if dtype not in (torch.float32, torch.bfloat16):
            raise NotFused(f"weights of {dtype}")
        for dim in {dim for shape in layers for dim in (shape.key_dim, shape.value_dim)}:
            if dim % STRIP:
                raise NotFused(f"heads of {dim}, no multiple of {STRIP}")

    def pack(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_embedding: bool = False
    ) -> PackedWeight:
        """Implements `LayerKernels`; the weight is stored in as few bits as lose nothing."""
        if weight.dtype == torch.float32:
            weight = weight.to(lossless_dtype(weight))
        return super().pack(weight, bias)

    def read_bytes(self, weight: PackedWeight) -> int:
        """Implements `LayerKernels`."""
        return weight.data.numel()

    def block_bytes(self, layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
        """Implements `LayerKernels`."""
        return dtype.itemsize * sum(
            LayerCache.num_elements(1, block_size, shape.num_heads, dim)
            for shape in layers
            for dim in (shape.key_dim, shape.value_dim)
        )

    def make_cache(
        self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> NativeCache:
        """Implements `LayerKernels`."""
        return NativeCache(layers, num_blocks, block_size, dtype)

    def plan(self, cache: PagedCache[LayerCache], spans: Sequence[QuerySpan]) -> SpanPlan:
        """Implements `LayerKernels`."""
        return SpanPlan.make(
            [span.start for span in spans],
            [span.num_tokens for span in spans],
            [span.table for span in spans],
            num_blocks=cache.pool.num_blocks,
            block_size=cache.pool.block_size,
        )


def _make_layer_cache(shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype) -> LayerCache:
    def zeros(dim: int) -> torch.Tensor:
        count = LayerCache.num_elements(num_blocks, block_size, shape.num_heads, dim)
        return huge_zeros(count * dtype.itemsize).view(dtype)

    keys, values = zeros(shape.key_dim), zeros(shape.value_dim)
    return LayerCache(keys, values, num_blocks, block_size, shape.num_heads, shape.key_dim, shape.value_dim)
