"""The format of shipped weights: what it loses, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minedraft.errors import ModelError
from minedraft.models.row_scales import ROWS_PER_SCALE, pack_matrices, unpack_matrices

PATH = Path("trained_layers.safetensors")


def round_trip(matrix: np.ndarray) -> np.ndarray:
    return unpack_matrices(pack_matrices({"m": matrix}), PATH)["m"]


def normal(rows: int, columns: int, size: float = 0.05) -> np.ndarray:
    return np.random.default_rng(5).normal(0, size, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 4, 6, 192])
@pytest.mark.parametrize("size", [1e-9, 1e-5, 0.05, 1e5])
def test_a_weight_is_off_by_half_a_127th_of_the_largest_one_of_its_rows_at_most(rows: int, size: float):
    matrix = normal(rows, 24, size)
    restored = round_trip(matrix)
    assert restored.dtype == np.float32
    assert restored.shape == matrix.shape
    for start in range(0, rows, ROWS_PER_SCALE):
        group = slice(start, start + ROWS_PER_SCALE)
        # A scale is rounded up to the next float16: by a 1024th, or by the smallest one there is.
        scale = np.abs(matrix[group]).max() / 127 * (1 + 2**-10) + 2**-24
        assert np.abs(matrix[group] - restored[group]).max() <= scale / 2 * (1 + 1e-6)


def test_rows_of_other_sizes_do_not_share_a_scale_across_groups():
    matrix = normal(8, 24)
    matrix[4:] *= 1e-3
    lost = np.abs(matrix - round_trip(matrix)).max(axis=1)
    assert lost[4:].max() < 1e-2 * lost[:4].min()


def test_what_was_restored_is_stored_without_a_further_loss():
    restored = round_trip(normal(16, 24))
    np.testing.assert_array_equal(round_trip(restored), restored)


def test_zeros_stay_zeros():
    assert not round_trip(np.zeros((5, 3), np.float32)).any()


def test_a_weight_takes_one_byte_and_four_rows_two_more():
    tensors = pack_matrices({"m": normal(64, 48)})
    assert {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()} == {
        "m": ("int8", (64, 48)),
        "m.scales": ("float16", (16,)),
    }
    assert np.abs(tensors["m"]).max() == 127


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_weights_that_no_scale_can_hold_are_refused(bad: float):
    matrix = normal(8, 4)
    matrix[5, 2] = bad
    with pytest.raises(ModelError, match="drafter is 'm': weights must be finite"):
        pack_matrices({"m": matrix})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": np.zeros((8, 4), np.float32)}, r"tensor 'm' is float32 \[8, 4\], must be a matrix of int8"),
        ({"m": np.zeros(8, np.int8)}, r"tensor 'm' is int8 \[8\], must be a matrix of int8"),
        ({"m": np.zeros((9, 4), np.int8)}, r"tensor 'm\.scales' is float16 \[2\], must be float16 \[3\] for 9 rows"),
        ({"m.scales": np.ones(1, np.float16)}, r"tensor 'm\.scales' is float16 \[1\], must be float16 \[2\]"),
        ({"m.scales": np.ones((2, 1), np.float16)}, r"tensor 'm\.scales' is float16 \[2, 1\]"),
        ({"m.scales": np.ones(2, np.float32)}, r"tensor 'm\.scales' is float32 \[2\]"),
        ({"m.scales": np.array([1, np.inf], np.float16)}, r"'m\.scales' has a scale that is not positive and finite"),
        ({"m.scales": np.array([1, 0], np.float16)}, r"'m\.scales' has a scale that is not positive and finite"),
        ({"m.scales": None}, r"tensor 'm' has no scales \('m\.scales' is missing\)"),
        ({"m": None}, r"tensor 'm\.scales' belongs to no matrix"),
    ],
)
def test_tensors_that_are_not_of_the_format_are_refused(change: dict[str, np.ndarray | None], message: str):
    tensors = pack_matrices({"m": normal(8, 4)}) | change
    with pytest.raises(ModelError, match=message):
        unpack_matrices({name: tensor for name, tensor in tensors.items() if tensor is not None}, PATH)
