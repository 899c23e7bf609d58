"""How much of attention one Triton program takes at once: as much as the card's shared memory holds.

A program has the queries of a piece, some query heads of one key head, and takes cached tokens turn by turn. In shared
memory it keeps the queries, a turn's keys and values, and their probabilities. What Triton takes for a tile is its own
affair; `Tile.shared_bytes` is an upper limit of it, found by compiling (`tests/unit/kernels/compile_for_gpu.py`), and a
program for which it is too low is refused when it is first launched, before a request comes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minedraft_workers.kernels.base import NotFused
from minedraft_workers.kernels.tables import LayerShape

# Tokens of one piece: a decode or a verify is one piece, a prompt many.
PIECE_LEN = 8
LEAST_SHARED_BYTES = 99 * 1024  # of one program, on the GPUs that have least
_LEAST_ROWS = 16  # of a matmul on tensor cores
_LEAST_LANES = 16
_KEYS = (64, 32, 16)  # of one turn of the loop
_MAX_KEY_BYTES = 64 * 256  # of those
_MAX_MIXED = 128 * 128  # float32 numbers that the threads of a program keep in registers
_SLACK_BYTES = 1024  # for sums over the threads


@dataclass(frozen=True, slots=True)
class Tile:
    """One program of attention.

    Attributes:
        heads: query heads that share the key head. rows: of the matmuls, tokens x query heads.
        keys: cached tokens of one turn.
        key_lanes, value_lanes: the sizes of a head, rounded up to a power of two.
    """

    heads: int
    rows: int
    keys: int
    key_lanes: int
    value_lanes: int

    def shared_bytes(self, itemsize: int) -> int:
        """Return the most bytes of shared memory that a program takes, of numbers of this size."""
        turn = self.keys * (self.key_lanes + self.value_lanes)
        return itemsize * (self.rows * self.key_lanes + turn + self.rows * self.keys) + _SLACK_BYTES


def choose_tile(shape: LayerShape, group: int, dtype: torch.dtype, shared_bytes: int) -> Tile:
    """Return the largest tile for a program with this much shared memory.

    Args:
        group: query heads of each key head.

    Raises:
        NotFused: not even the smallest fits.
    """
    key_lanes, value_lanes = (
        max(_LEAST_LANES, 1 << (dim - 1).bit_length()) for dim in (shape.key_dim, shape.value_dim)
    )
    smallest = 0
    for heads in (part for part in range(group, 0, -1) if group % part == 0):
        rows = max(_LEAST_ROWS, 1 << (PIECE_LEN * heads - 1).bit_length())
        for keys in _KEYS:
            tile = Tile(heads, rows, keys, key_lanes, value_lanes)
            smallest = tile.shared_bytes(dtype.itemsize)
            is_small = keys * max(key_lanes, value_lanes) * dtype.itemsize <= _MAX_KEY_BYTES or keys == _KEYS[-1]
            fits = rows * value_lanes <= _MAX_MIXED or heads == 1
            if is_small and fits and smallest <= shared_bytes:
                return tile
    dims = f"heads of {shape.key_dim} and {shape.value_dim}"
    raise NotFused(f"{dims} in {dtype}: attention needs {smallest} bytes of shared memory, the GPU has {shared_bytes}")
