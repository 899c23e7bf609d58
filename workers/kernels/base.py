"""The interface between a decoder's layers and what computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import torch

from minedraft_workers.kernels.tables import BlockTables, LayerShape, QuerySpan

WeightT = TypeVar("WeightT")
LayerCacheT = TypeVar("LayerCacheT")
PlanT = TypeVar("PlanT")


class NotFused(Exception):
    """The model has a part that these kernels do not compute; the message names it."""


class PagedCache(BlockTables, Generic[LayerCacheT]):
    """Keys and values of every request in blocks, in the layout of the kernels that made it.

    Attributes:
        layer_caches: for each layer, what its calls of `store` and `attend` are given.
    """

    layer_caches: Sequence[LayerCacheT]


class LayerKernels(Protocol[WeightT, LayerCacheT, PlanT]):
    """One device's kernels; one call at a time.

    Matrices are [rows, columns], columns contiguous; a row is one new token of some request. Weights, caches
    and plans are made by the kernels that use them and are opaque to everybody else.

    Attributes:
        is_batch_invariant: whether of every kernel a row's result is the same, bit for bit, whatever the other
            rows are, however many, and however a prompt was cut into spans.
    """

    is_batch_invariant: bool

    @property
    def name(self) -> str:
        """For people: "torch", "native amx_bf16"."""
        ...

    def check(self, layers: Sequence[LayerShape], dtype: torch.dtype) -> None:
        """Raise NotFused unless these kernels compute layers of these shapes in this dtype."""
        ...

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_embedding: bool = False) -> WeightT:
        """Copy a linear layer, weight [out_features, in_features], into the layout that `linear` reads.

        is_embedding: `rows` will be called for it.
        """
        ...

    def read_bytes(self, weight: WeightT) -> int:
        """Return the bytes that one call of `linear` reads of the weight, as stored."""
        ...

    def block_bytes(self, layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
        """Return the bytes that one block of a cache takes over all layers."""
        ...

    def make_cache(
        self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> PagedCache[LayerCacheT]:
        """Return an empty cache. Raise MemoryError, OSError or torch.OutOfMemoryError if it does not fit."""
        ...

    def plan(self, cache: PagedCache[LayerCacheT], spans: Sequence[QuerySpan]) -> PlanT:
        """Return what all layers must know of a forward whose rows are these spans, one after the other."""
        ...

    def rows(self, weight: WeightT, ids: torch.Tensor) -> torch.Tensor:
        """Return rows `ids`, int64 [n], of a weight packed as an embedding: [n, in_features]."""
        ...

    def linear(self, x: torch.Tensor, weight: WeightT, *, as_float32: bool = False) -> torch.Tensor:
        """Return x W^T + bias, [rows, out_features], in x's dtype or in float32."""
        ...

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return Llama's RMS norm of x, or of residual + x; the sum is then also written to `residual`.

        out: where the result is written, if it is given; columns of a wider matrix will do.
        """
        ...

    def rope_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate, in place, every head of x, [rows, heads * dim], by cos and sin, [rows, dim]: halves of a head."""
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up: [rows, 2 * size], the gate's columns first -> [rows, size]."""
        ...

    def store(self, cache: LayerCacheT, key: torch.Tensor, value: torch.Tensor, plan: PlanT) -> None:
        """Write the keys and values, [rows, heads * dim], of the plan's rows into the cache."""
        ...

    def attend(self, cache: LayerCacheT, query: torch.Tensor, plan: PlanT, scale: float) -> torch.Tensor:
        """Attend every row, [rows, heads * key_dim], to its request's tokens up to its own, read from the cache.

        Consecutive query heads share a key head. Returns [rows, heads * value_dim].
        """
        ...
