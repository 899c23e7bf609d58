"""What the native kernels are given: checked once, so that a call has little left to check.

Errors are `InternalError`: no user's input reaches a kernel unchecked, a wrong size here is a bug of ours.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minedraft.errors import InternalError

# As in kernels.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
STRIP = 16
# Columns an argmax counts exactly in float32.
MAX_COLUMNS = 1 << 24
_HUGE_PAGE = 1 << 21
_ARENA_BYTES = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A linear layer's weight as the kernels read it, from `NativeKernels.pack`.

    data: uint8, beginning on a multiple of 64 bytes. bias: float32 [out_features], contiguous.
    """

    data: torch.Tensor
    dtype: torch.dtype
    out_features: int
    in_features: int
    bias: torch.Tensor | None
    pointer: int
    bias_pointer: int | None


@dataclass(frozen=True, slots=True, eq=False)
class LayerCache:
    """One layer's keys and values, laid out as src/cache.h draws it.

    What a block holds before `store` writes there never matters, with one exception: where block_size is
    no multiple of 16, its unused end must be zeros from the beginning. A freed block need not be cleared.

    keys, values: contiguous, float32 or bfloat16, of `num_elements` each.
    """

    keys: torch.Tensor
    values: torch.Tensor
    num_blocks: int
    block_size: int
    num_heads: int
    key_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        if min(self.num_blocks, self.block_size, self.num_heads) < 1 or self.num_blocks >= 1 << 31:
            raise InternalError(f"cache of {self.num_blocks} blocks of {self.block_size}, {self.num_heads} heads")
        for name, tensor, dim in (("keys", self.keys, self.key_dim), ("values", self.values, self.value_dim)):
            if dim < STRIP or dim % STRIP:
                raise InternalError(f"{name} have {dim} dimensions: must be a multiple of {STRIP}")
            wanted = self.num_elements(self.num_blocks, self.block_size, self.num_heads, dim)
            if tensor.dtype not in (torch.float32, torch.bfloat16) or tensor.dtype != self.keys.dtype:
                raise InternalError(f"{name} are {tensor.dtype}: must be float32 or bfloat16, both the same")
            if not tensor.is_cpu or not tensor.is_contiguous() or tensor.numel() != wanted:
                raise InternalError(f"{name} have {tensor.numel()} numbers: must be {wanted}, contiguous, on the CPU")

    @staticmethod
    def num_elements(num_blocks: int, block_size: int, num_heads: int, dim: int) -> int:
        """Numbers that keys, or values, of `dim` take: a block is stored as the next multiple of 16 tokens."""
        return num_blocks * num_heads * -(-block_size // STRIP) * STRIP * dim

    @property
    def arguments(self) -> tuple[int, int, int, int, int, int, int]:
        """As the entry points take them."""
        code = DTYPE_CODES[self.keys.dtype]
        pointers = self.keys.data_ptr(), self.values.data_ptr()
        return (*pointers, self.block_size, self.num_heads, self.key_dim, self.value_dim, code)


@dataclass(frozen=True, slots=True, eq=False)
class SpanPlan:
    """Which rows of a packed forward belong to which request's cached tokens; the same for every layer.

    spans: int64 [n, 4]: first row, rows, tokens before them, where the request's block ids begin in `blocks`.
    slots: int64 [num_rows], where each row's key and value are stored: block * block_size + offset.
    """

    spans: np.ndarray
    blocks: np.ndarray
    slots: np.ndarray
    num_rows: int
    num_blocks: int
    block_size: int
    pointers: tuple[int, int, int]

    @classmethod
    def make(
        cls,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        *,
        num_blocks: int,
        block_size: int,
    ) -> SpanPlan:
        """Spans packed one after the other: `lengths[i]` rows, from token `starts[i]` of a request on.

        In Python, row by row: a round of decoding has few, and NumPy's calls cost more than they do.

        tables: each request's block ids from its first token on, of a cache of `num_blocks` blocks.

        Raises:
            InternalError: a span is empty, its table too short, or a block id is not of this cache.
        """
        if not len(starts) == len(lengths) == len(tables) or num_blocks < 1 or block_size < 1:
            raise InternalError(f"{len(starts)} starts, {len(lengths)} lengths, {len(tables)} tables of blocks")
        spans: list[tuple[int, int, int, int]] = []
        blocks: list[int] = []
        slots: list[int] = []
        for start, length, table in zip(starts, lengths, tables, strict=True):
            if start < 0 or length < 1 or start + length > len(table) * block_size:
                raise InternalError("a span has no rows, starts below 0, or has more tokens than its blocks hold")
            spans.append((len(slots), length, start, len(blocks)))
            blocks += table
            slots += [table[at // block_size] * block_size + at % block_size for at in range(start, start + length)]
        if blocks and not 0 <= min(blocks) <= max(blocks) < num_blocks:
            raise InternalError(f"block ids are {min(blocks)}..{max(blocks)}: must be 0..{num_blocks - 1}")
        arrays = np.array(spans, np.int64).reshape(-1, 4), np.array(blocks, np.int32), np.array(slots, np.int64)
        pointers = tuple([array.ctypes.data for array in arrays])
        return cls(*arrays, len(slots), num_blocks, block_size, pointers)  # type: ignore[arg-type]

    @classmethod
    def stand_in(cls, num_rows: int, num_blocks: int, block_size: int) -> SpanPlan:
        """A plan of as many rows without any contents, for calls that are recorded."""
        empty = np.empty(0, np.int64)
        return cls(empty, empty, empty, num_rows, num_blocks, block_size, (0, 0, 0))


class Arena:
    """Memory in huge pages, where the system has them, handed out piece by piece.

    Weights are read from end to end in every forward: with pages of 4 KiB, address translation alone costs
    a fifth of that. A piece lives as long as a tensor that looks at it.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> torch.Tensor:
        """An uint8 tensor of zeros that begins on a multiple of 64 bytes."""
        size = -(-num_bytes // 64) * 64
        if size > _ARENA_BYTES // 4:
            return huge_zeros(size)[:num_bytes]
        if size > self._free.numel():
            self._free = huge_zeros(_ARENA_BYTES)
        piece, self._free = self._free[:num_bytes], self._free[size:]
        return piece


def huge_zeros(num_bytes: int) -> torch.Tensor:
    """Zeros, uint8, that begin on a huge page; memory is taken page by page when it is first written."""
    if num_bytes < _HUGE_PAGE:
        raw = torch.zeros(num_bytes + 64, dtype=torch.uint8)
        return raw[-raw.data_ptr() % 64 :][:num_bytes]
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    return raw[-raw.data_ptr() % _HUGE_PAGE :][:num_bytes]


def lossless_dtype(weight: torch.Tensor) -> torch.dtype:
    """The shortest of bfloat16, float16 and float32 that holds every number of a float32 weight exactly."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weight.to(dtype).to(weight.dtype), weight):
            return dtype
    return torch.float32
