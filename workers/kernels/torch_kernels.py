"""The reference implementation of the layer kernels: torch's operators, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from minedraft_workers.kernels.base import PagedCache
from minedraft_workers.kernels.kvcache import KVCache
from minedraft_workers.kernels.linear import LinearPacker
from minedraft_workers.kernels.paged_attention import ForwardContext, Scratch, attend_paged
from minedraft_workers.kernels.tables import LayerShape, QuerySpan


@dataclass(frozen=True, slots=True, eq=False)
class TorchWeight:
    """A linear layer. read_bytes: of its weight, as stored. dense: its weight, where rows of it are looked up."""

    linear: nn.Module
    read_bytes: int
    dense: torch.Tensor | None


class TorchLinears:
    """Linear layers by torch, on any device.

    Args:
        device: where everything lies. dtype: of the weights and the rows.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._packer = LinearPacker(dtype) if device.type == "cpu" else None

    def pack(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, is_embedding: bool = False
    ) -> TorchWeight:
        """Implements `LayerKernels`."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
        packed, num_bytes = (linear, weight.nbytes) if self._packer is None else self._packer.pack(linear)
        return TorchWeight(packed, num_bytes, weight.detach() if is_embedding else None)

    def read_bytes(self, weight: TorchWeight) -> int:
        """Implements `LayerKernels`."""
        return weight.read_bytes

    def rows(self, weight: TorchWeight, ids: torch.Tensor) -> torch.Tensor:
        """Implements `LayerKernels`."""
        assert weight.dense is not None, "packed as an embedding"
        return weight.dense.index_select(0, ids)

    def linear(self, x: torch.Tensor, weight: TorchWeight, *, as_float32: bool = False) -> torch.Tensor:
        """Implements `LayerKernels`."""
        y: torch.Tensor = weight.linear(x)
        return y.float() if as_float32 else y


class TorchLayerKernels(TorchLinears):
    """Torch's operators. A row's result may depend on the number of rows, because matmuls are chosen by it."""

    name = "torch"
    is_batch_invariant = False

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        self._scratch = Scratch()

    def check(self, layers: Sequence[LayerShape], dtype: torch.dtype) -> None:
        """Implements `LayerKernels`; every shape will do."""

    def block_bytes(self, layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
        """Implements `LayerKernels`."""
        return KVCache.block_bytes(layers, block_size, dtype)

    def make_cache(self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
        """Implements `LayerKernels`."""
        return KVCache(layers, num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=self._device)

    def plan(self, cache: PagedCache[int], spans: Sequence[QuerySpan]) -> ForwardContext:
        """Implements `LayerKernels`."""
        assert isinstance(cache, KVCache), "made by `make_cache`"
        return ForwardContext(cache, self._scratch, spans)

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Implements `LayerKernels`."""
        if residual is not None:
            x = residual.add_(x)
        normed = functional.rms_norm(x, weight.shape, weight, eps)
        return normed if out is None else out.copy_(normed)

    def rope_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Implements `LayerKernels`."""
        heads = x.view(len(x), -1, cos.shape[1])
        left, right = heads.chunk(2, dim=2)
        heads.copy_(heads * cos[:, None] + torch.cat((-right, left), dim=2) * sin[:, None])
        return x

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Implements `LayerKernels`."""
        gate, up = gate_up.chunk(2, dim=1)
        return functional.silu(gate).mul_(up)

    def store(self, cache: int, key: torch.Tensor, value: torch.Tensor, plan: ForwardContext) -> None:
        """Implements `LayerKernels`."""
        plan.write(cache, key, value)

    def attend(self, cache: int, query: torch.Tensor, plan: ForwardContext, scale: float) -> torch.Tensor:
        """Implements `LayerKernels`."""
        queries = query.view(len(query), -1, plan.cache.layers[cache].key_dim)
        return attend_paged(plan, cache, queries, scale).flatten(1)
