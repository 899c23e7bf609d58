"""How much of attention a program takes at once, for what a card's shared memory holds."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from minedraft_workers.kernels.base import NotFused
from minedraft_workers.kernels.tables import LayerShape
from minedraft_workers.kernels.triton_tiles import LEAST_SHARED_BYTES, Tile, choose_tile

H100, A100 = 227 << 10, 163 << 10
FLOAT, HALF = torch.float32, torch.bfloat16


def tile(dim: int, group: int, dtype: torch.dtype, shared_bytes: int) -> Tile:
    return choose_tile(LayerShape(1, dim, dim), group, dtype, shared_bytes)


@pytest.mark.parametrize(
    ("dim", "group", "dtype", "wanted"),
    [
        (128, 4, HALF, Tile(4, 32, 64, 128, 128)),  # Llama 8B
        (64, 3, HALF, Tile(3, 32, 64, 64, 64)),  # SmolLM2
        (128, 7, HALF, Tile(7, 64, 64, 128, 128)),  # Qwen 7B
        (96, 1, HALF, Tile(1, 16, 64, 128, 128)),
    ],
)
def test_usual_heads_are_attended_at_once(dim: int, group: int, dtype: torch.dtype, wanted: Tile) -> None:
    assert tile(dim, group, dtype, H100) == tile(dim, group, dtype, A100) == wanted


@pytest.mark.parametrize("shared_bytes", [H100, A100, LEAST_SHARED_BYTES])
def test_every_tile_fits_and_divides_the_query_heads(shared_bytes: int) -> None:
    for dim, group, dtype in product((8, 64, 80, 128, 256), (1, 2, 3, 7, 8, 16, 32), (FLOAT, HALF)):
        found = tile(dim, group, dtype, shared_bytes)
        assert found.shared_bytes(dtype.itemsize) <= shared_bytes
        assert group % found.heads == 0
        assert found.rows >= 8 * found.heads


def test_sixteen_float32_heads_of_256_are_attended_in_parts() -> None:
    found = tile(256, 16, FLOAT, A100)
    assert found.heads < 16
    assert found.shared_bytes(4) <= A100


def test_heads_that_no_tile_has_room_for_are_refused_by_their_size() -> None:
    with pytest.raises(
        NotFused, match=r"heads of 8192 and 8192 in torch\.float32: attention needs \d+ bytes of shared"
    ):
        tile(8192, 1, FLOAT, H100)
