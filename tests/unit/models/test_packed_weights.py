"""The format of shipped weights: what it loses, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.errors import ModelError
from minedraft.models.packed_weights import COLUMNS_PER_SCALE, pack_matrices, unpack_matrices

PATH = Path("trained_layers.safetensors")


def round_trip(matrix: np.ndarray) -> np.ndarray:
    return unpack_matrices(pack_matrices({"m": matrix}), PATH)["m"]


def normal(rows: int, columns: int, size: float = 0.05) -> np.ndarray:
    return np.random.default_rng(5).normal(0, size, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("columns", [4, 128, 136, 192])
@pytest.mark.parametrize("size", [1e-9, 1e-5, 0.05, 1e5])
def test_a_weight_is_off_by_half_a_31st_of_the_largest_of_its_128_at_most(columns: int, size: float):
    matrix = normal(24, columns, size)
    restored = round_trip(matrix)
    assert restored.dtype == np.float32
    assert restored.shape == matrix.shape
    for start in range(0, columns, COLUMNS_PER_SCALE):
        group = np.s_[:, start : start + COLUMNS_PER_SCALE]
        # A scale is rounded up to the next float16: by a 1024th, or by the smallest one there is.
        scales = np.abs(matrix[group]).max(axis=1) / 31 * (1 + 2**-10) + 2**-24
        assert (np.abs(matrix[group] - restored[group]).max(axis=1) <= scales / 2 * (1 + 1e-6)).all()


def test_weights_of_other_sizes_do_not_share_a_scale():
    matrix = normal(4, 256)
    matrix[:, 128:] *= 1e-3
    lost = np.abs(matrix - round_trip(matrix))
    assert lost[:, 128:].max() < 1e-2 * lost[:, :128].max()


def test_what_was_restored_is_stored_without_a_further_loss():
    restored = round_trip(normal(16, 264))
    np.testing.assert_array_equal(round_trip(restored), restored)


def test_zeros_stay_zeros():
    assert not round_trip(np.zeros((5, 4), np.float32)).any()


def test_a_weight_takes_six_bits_and_128_of_them_two_bytes_more():
    tensors = pack_matrices({"m": normal(64, 384)})
    assert {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()} == {
        "m": ("uint8", (64, 288)),
        "m.scales": ("float16", (64, 3)),
    }


def test_the_bytes_are_those_that_the_drawing_shows():
    codes = [-31, 31, 0, 1, -1, 2, -2, 7]
    stored = sum((code + 31) << 6 * column for column, code in enumerate(codes))
    tensors = pack_matrices({"m": np.array([codes], np.float32)})
    assert tensors["m"].tobytes() == stored.to_bytes(6, "little")
    assert tensors["m.scales"].tolist() == [[1.0]]


@given(st.lists(st.lists(st.integers(-31, 31), min_size=16, max_size=16), min_size=1, max_size=5))
def test_every_code_comes_back(codes: list[list[int]]):
    matrix = np.array(codes, np.float32)
    matrix[:, 3] = 31  # so that the scale is 1
    np.testing.assert_array_equal(round_trip(matrix), matrix)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_weights_that_no_scale_can_hold_are_refused(bad: float):
    matrix = normal(4, 8)
    matrix[2, 5] = bad
    with pytest.raises(ModelError, match="drafter is 'm': weights must be finite"):
        pack_matrices({"m": matrix})


def test_columns_that_do_not_fill_bytes_are_refused():
    with pytest.raises(ModelError, match="drafter is 'm': 10 columns, must be a multiple of 4"):
        pack_matrices({"m": normal(4, 10)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": np.zeros((8, 6), np.float32)}, r"tensor 'm' is float32 \[8, 6\], must be a matrix of uint8"),
        ({"m": np.zeros(6, np.uint8)}, r"tensor 'm' is uint8 \[6\], must be a matrix of uint8"),
        ({"m": np.zeros((8, 8), np.uint8)}, r"tensor 'm' is uint8 \[8, 8\], .* whose columns are a multiple of 3"),
        ({"m": np.zeros((9, 6), np.uint8)}, r"tensor 'm\.scales' is float16 \[8, 1\], must be float16 \[9, 1\]"),
        ({"m": np.zeros((8, 102), np.uint8)}, r"float16 \[8, 1\], must be float16 \[8, 2\] for 136 columns"),
        ({"m": np.full((8, 6), 255, np.uint8)}, "tensor 'm' has a code above 62"),
        ({"m.scales": np.ones(8, np.float16)}, r"tensor 'm\.scales' is float16 \[8\]"),
        ({"m.scales": np.ones((8, 1), np.float32)}, r"tensor 'm\.scales' is float32 \[8, 1\]"),
        ({"m.scales": np.full((8, 1), np.inf, np.float16)}, r"'m\.scales' has a scale that is not positive and finite"),
        ({"m.scales": np.zeros((8, 1), np.float16)}, r"'m\.scales' has a scale that is not positive and finite"),
        ({"m.scales": None}, r"tensor 'm' has no scales \('m\.scales' is missing\)"),
        ({"m": None}, r"tensor 'm\.scales' belongs to no matrix"),
    ],
)
def test_tensors_that_are_not_of_the_format_are_refused(change: dict[str, np.ndarray | None], message: str):
    tensors = pack_matrices({"m": normal(8, 8)}) | change
    with pytest.raises(ModelError, match=message):
        unpack_matrices({name: tensor for name, tensor in tensors.items() if tensor is not None}, PATH)
