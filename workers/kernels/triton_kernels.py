"""The layer kernels in Triton, for CUDA; linear layers are torch's. Not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import triton

from minedraft_workers.kernels import triton_source as programs
from minedraft_workers.kernels.base import PagedCache
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import LayerShape, QuerySpan
from minedraft_workers.kernels.torch_kernels import TorchLinears

# Tokens of one piece: a decode or a verify is one piece, a prompt many.
PIECE_LEN = 8
_LEAST_ROWS = 16  # of a matmul on tensor cores
_KEYS_AT_ONCE = 64
_GATE_LANES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class TritonLayer:
    """One layer's cache: keys and values [num_blocks + 1, heads, block_size, dim]."""

    shape: LayerShape
    keys: torch.Tensor
    values: torch.Tensor


class TritonCache(PagedCache[TritonLayer]):
    """Keys and values on a GPU. Free blocks need not be cleared: nothing unwritten is read."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(layers, num_blocks, block_size)
        self.device = device

        def room(shape: LayerShape, dim: int) -> torch.Tensor:
            return torch.empty(num_blocks + 1, shape.num_heads, block_size, dim, dtype=dtype, device=device)

        self.layer_caches = [
            TritonLayer(shape, room(shape, shape.key_dim), room(shape, shape.value_dim)) for shape in self.layers
        ]

    def _copy(self, source: int, target: int) -> None:
        for cache in self.layer_caches:
            for blocks in (cache.keys, cache.values):
                blocks[target] = blocks[source]


@dataclass(frozen=True, slots=True)
class PlanSize:
    """Rows, pieces, and blocks of the longest table."""

    num_rows: int
    num_pieces: int
    width: int

    @classmethod
    def of(cls, spans: Sequence[QuerySpan]) -> Self:
        """Return the least size that holds these spans."""
        num_pieces = sum(-(-span.num_tokens // PIECE_LEN) for span in spans)
        return cls(sum(span.num_tokens for span in spans), num_pieces, max(span.num_blocks for span in spans))

    @property
    def num_numbers(self) -> int:
        return self.num_pieces * (3 + self.width) + self.num_rows


class PiecePlan:
    """What all layers must know of a forward: views of one int64 buffer, [size.num_numbers], on the device.

    Attributes:
        pieces: [n, 3], each piece's first row, tokens and first position; zeros for a piece of padding.
        tables: [n, width], its request's blocks. slots: [rows], where each row is stored: block * block_size +
            offset; a row of padding goes to the block after the cache's last.
        has_padding: whether there may be rows that are in no piece.
    """

    def __init__(self, buffer: torch.Tensor, size: PlanSize, *, has_padding: bool = False) -> None:
        self.buffer = buffer
        self.has_padding = has_padding
        pieces, tables, self.slots = torch.split(
            buffer, [3 * size.num_pieces, size.width * size.num_pieces, size.num_rows]
        )
        self.pieces, self.tables = pieces.view(-1, 3), tables.view(-1, size.width)


def fill_plan(spans: Sequence[QuerySpan], size: PlanSize, block_size: int, padding_slot: int) -> np.ndarray:
    """Return the buffer of a plan of this size, which may have room for more, on the host."""
    host = np.zeros(size.num_numbers, dtype=np.int64)
    pieces = host[: 3 * size.num_pieces].reshape(-1, 3)
    tables = host[3 * size.num_pieces : (3 + size.width) * size.num_pieces].reshape(-1, size.width)
    slots = host[(3 + size.width) * size.num_pieces :]
    row = piece = 0
    for span in spans:
        for offset in range(0, span.num_tokens, PIECE_LEN):
            pieces[piece] = row + offset, min(PIECE_LEN, span.num_tokens - offset), span.start + offset
            tables[piece, : span.num_blocks] = span.blocks
            piece += 1
        tokens = np.arange(span.start, span.start + span.num_tokens)
        slots[row : row + span.num_tokens] = span.blocks[tokens // block_size] * block_size + tokens % block_size
        row += span.num_tokens
    slots[row:] = padding_slot
    return host


class TritonLayerKernels(TorchLinears):
    """Triton programs and torch's matmuls. The matmuls make a row's result depend on the number of rows."""

    name = "triton"
    is_batch_invariant = False

    def check(self, layers: Sequence[LayerShape], dtype: torch.dtype) -> None:
        """Implements `LayerKernels`; every shape will do."""

    def block_bytes(self, layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
        """Implements `LayerKernels`."""
        return block_size * dtype.itemsize * sum(shape.num_elements for shape in layers)

    def make_cache(
        self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> TritonCache:
        """Implements `LayerKernels`."""
        return TritonCache(layers, num_blocks, block_size, dtype, self._device)

    def plan(self, cache: PagedCache[TritonLayer], spans: Sequence[QuerySpan]) -> PiecePlan:
        """Implements `LayerKernels`; everything goes to the device in one copy."""
        size, pool = PlanSize.of(spans), cache.pool
        host = fill_plan(spans, size, pool.block_size, pool.num_blocks * pool.block_size)
        return PiecePlan(to_device(host, self._device), size)

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Implements `LayerKernels`."""
        size = weight.shape[0]
        if out is None:
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        kept = x if residual is None else residual
        programs.norm_row[(len(x),)](
            x, kept, weight, out, x.stride(0), kept.stride(0), out.stride(0), eps,
            SIZE=size, LANES=triton.next_power_of_2(size), HAS_RESIDUAL=residual is not None,
        )  # fmt: skip
        return out

    def rope_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Implements `LayerKernels`."""
        dim = cos.shape[1]
        programs.rotate_head[len(x), x.shape[1] // dim](
            x, cos, sin, x.stride(0), DIM=dim, LANES=triton.next_power_of_2(dim // 2)
        )
        return x

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Implements `LayerKernels`."""
        num_rows, size = len(gate_up), gate_up.shape[1] // 2
        out = torch.empty(num_rows, size, dtype=gate_up.dtype, device=gate_up.device)
        programs.gate_row[num_rows, triton.cdiv(size, _GATE_LANES)](
            gate_up, out, gate_up.stride(0), SIZE=size, LANES=_GATE_LANES
        )
        return out

    def store(self, cache: TritonLayer, key: torch.Tensor, value: torch.Tensor, plan: PiecePlan) -> None:
        """Implements `LayerKernels`."""
        shape, block_size = cache.shape, cache.keys.shape[2]
        programs.store_rows[len(plan.slots), shape.num_heads](
            key, value, cache.keys, cache.values, plan.slots, key.stride(0), value.stride(0),
            HEADS=shape.num_heads, BLOCK_SIZE=block_size, KEY_DIM=shape.key_dim, VALUE_DIM=shape.value_dim,
            KEY_LANES=triton.next_power_of_2(shape.key_dim), VALUE_LANES=triton.next_power_of_2(shape.value_dim),
        )  # fmt: skip

    def attend(self, cache: TritonLayer, query: torch.Tensor, plan: PiecePlan, scale: float) -> torch.Tensor:
        """Implements `LayerKernels`."""
        shape, block_size = cache.shape, cache.keys.shape[2]
        group = query.shape[1] // (shape.num_heads * shape.key_dim)
        width = group * shape.num_heads * shape.value_dim
        # No piece writes the rows of padding, whose numbers may be anything but must not overflow from layer to layer.
        out = query.new_zeros(len(query), width) if plan.has_padding else query.new_empty(len(query), width)
        programs.attend_piece[len(plan.pieces), shape.num_heads](
            query, cache.keys, cache.values, out, plan.pieces, plan.tables, query.stride(0), plan.tables.stride(0),
            scale, HEADS=shape.num_heads, GROUP=group, BLOCK_SIZE=block_size, KEY_DIM=shape.key_dim,
            VALUE_DIM=shape.value_dim, ROWS=max(_LEAST_ROWS, triton.next_power_of_2(PIECE_LEN * group)),
            KEYS=_KEYS_AT_ONCE, KEY_LANES=max(16, triton.next_power_of_2(shape.key_dim)),
            VALUE_LANES=max(16, triton.next_power_of_2(shape.value_dim)), IS_INTERPRETED=not query.is_cuda,
        )  # fmt: skip
        return out
