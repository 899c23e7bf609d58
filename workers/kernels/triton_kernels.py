"""The layer kernels in Triton, for CUDA; linear layers are torch's. Not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
from triton.runtime.errors import OutOfResources

from minedraft_workers.kernels import triton_source as programs
from minedraft_workers.kernels.base import NotFused, PagedCache
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import LayerShape, QuerySpan
from minedraft_workers.kernels.torch_kernels import TorchLinears
from minedraft_workers.kernels.triton_tiles import LEAST_SHARED_BYTES, PIECE_LEN, Tile, choose_tile

_GATE_LANES = 1024
_MAX_CAUSE_CHARS = 300


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


@dataclass(frozen=True, slots=True, eq=False)
class PiecePlan:
    """What all layers must know of a forward, int64, on the device.

    pieces: [n, 3], each piece's first row, tokens and first position; zeros for a piece of padding.
    tables: [n, width], its request's blocks. slots: [rows], where each row is stored: block * block_size +
    offset; a row of padding goes to the block after the cache's last.
    has_padding: whether there may be rows that are in no piece.
    """

    pieces: torch.Tensor
    tables: torch.Tensor
    slots: torch.Tensor
    has_padding: bool = False


class HostPlan(NamedTuple):
    """A `PiecePlan` on the host."""

    pieces: np.ndarray
    tables: np.ndarray
    slots: np.ndarray


def fill_plan(spans: Sequence[QuerySpan], block_size: int) -> HostPlan:
    """Return the plan of a forward whose rows are these spans, one after the other."""
    starts, lengths = np.array([(span.start, span.num_tokens) for span in spans]).T
    first_rows = lengths.cumsum() - lengths
    tables = np.zeros((len(spans), max(span.num_blocks for span in spans)), dtype=np.int64)
    for table, span in zip(tables, spans, strict=True):
        table[: span.num_blocks] = span.blocks
    counts = -(-lengths // PIECE_LEN)
    owners = np.repeat(np.arange(len(spans)), counts)
    offsets = (np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)) * PIECE_LEN
    sizes = np.minimum(lengths[owners] - offsets, PIECE_LEN)
    pieces = np.stack([first_rows[owners] + offsets, sizes, starts[owners] + offsets], axis=1)
    row_owners = np.repeat(np.arange(len(spans)), lengths)
    tokens = np.arange(len(row_owners)) - first_rows[row_owners] + starts[row_owners]
    slots = tables[row_owners, tokens // block_size] * block_size + tokens % block_size
    return HostPlan(pieces, tables[owners], slots)


def find_shared_bytes(device: torch.device) -> int:
    """Return the bytes of shared memory that one program may have, as Triton counts them; without a GPU the least that
    one has."""
    if device.type != "cuda":
        return LEAST_SHARED_BYTES
    index = torch.cuda.current_device() if device.index is None else device.index
    found: int = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return found


class TritonLayerKernels(TorchLinears):
    """Triton programs and torch's matmuls. The matmuls make a row's result depend on the number of rows."""

    name = "triton"
    is_batch_invariant = False

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        self._tiles: dict[tuple[LayerShape, int, torch.dtype], Tile] = {}

    def check(self, layers: Sequence[LayerShape], dtype: torch.dtype) -> None:
        """Implements `LayerKernels`. Whether programs can be built at all is found out here: Triton needs a C compiler,
        Python's headers and a folder for them. A shape that shared memory has no room for is refused by `attend`."""
        if self._device.type == "meta":  # nothing runs there
            return
        try:
            ones = torch.ones(1, 16, dtype=dtype, device=self._device)
            self.rms_norm(ones, ones[0], 1e-6)
        except torch.OutOfMemoryError:  # says nothing about Triton
            raise
        except Exception as error:  # of any kind: a compiler's, the driver's, a file's
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise NotFused(f"Triton cannot build its programs here ({text[:_MAX_CAUSE_CHARS]})") from error

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
        host = fill_plan(spans, cache.pool.block_size)
        sent = to_device(np.concatenate([part.ravel() for part in host]), self._device)
        pieces, tables, slots = torch.split(sent, [part.size for part in host])
        return PiecePlan(pieces.view(host.pieces.shape), tables.view(host.tables.shape), slots)

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
        """Implements `LayerKernels`.

        Raises:
            NotFused: the GPU's shared memory has no room for heads of this shape; in the check at load, if ever.
        """
        shape, block_size = cache.shape, cache.keys.shape[2]
        group = query.shape[1] // (shape.num_heads * shape.key_dim)
        width = group * shape.num_heads * shape.value_dim
        tile = self._find_tile(shape, group, query.dtype)
        # No piece writes the rows of padding, whose numbers may be anything but must not overflow from layer to layer.
        out = query.new_zeros(len(query), width) if plan.has_padding else query.new_empty(len(query), width)
        try:
            programs.attend_piece[len(plan.pieces), shape.num_heads * (group // tile.heads)](
                query, cache.keys, cache.values, out, plan.pieces, plan.tables, query.stride(0), plan.tables.stride(0),
                scale, HEADS=shape.num_heads, GROUP=group, PART=tile.heads, BLOCK_SIZE=block_size,
                KEY_DIM=shape.key_dim, VALUE_DIM=shape.value_dim, ROWS=tile.rows, KEYS=tile.keys,
                KEY_LANES=tile.key_lanes, VALUE_LANES=tile.value_lanes, IS_INTERPRETED=not query.is_cuda,
            )  # fmt: skip
        except OutOfResources as error:
            raise NotFused(f"attention of heads of {shape.key_dim}: {error}") from error
        return out

    def _find_tile(self, shape: LayerShape, group: int, dtype: torch.dtype) -> Tile:
        key = shape, group, dtype
        if key not in self._tiles:
            self._tiles[key] = choose_tile(shape, group, dtype, find_shared_bytes(self._device))
        return self._tiles[key]
