"""The promise: a row's result depends on that row alone, bit for bit, as a property over random shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.library import FAST_ISAS, ISAS
from tests.support.native_caches import Shape, Texts, numbers
from tests.unit.native.conftest import open_kernels

DTYPES = [torch.float32, torch.bfloat16]
sizes = st.integers(1, 150)


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, where a NaN equals a NaN."""
    return torch.equal(a, b) or torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_out=sizes, num_in=sizes, num_rows=st.integers(1, 120), num_threads=st.integers(2, 4))
def test_a_linear_row_is_the_same_alone_in_a_crowd_and_on_any_threads(
    isa: str, dtype: torch.dtype, data: st.DataObject, num_out: int, num_in: int, num_rows: int, num_threads: int
):
    kernels = open_kernels(isa)
    stored = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    weight = numbers(num_out, num_in, dtype=dtype if dtype == torch.bfloat16 else stored)
    x = numbers(num_rows, num_in, dtype=dtype, seed=1)
    packed = kernels.pack(weight, numbers(num_out, dtype=torch.float32, seed=2))
    threaded = open_kernels(isa, num_threads)

    def run(rows: torch.Tensor, with_kernels: NativeKernels = kernels) -> torch.Tensor:
        return with_kernels.linear(rows, packed, as_float32=True)  # rounding would hide a sum's last bits

    whole = run(x)
    order = torch.tensor(data.draw(st.permutations(range(num_rows))))
    cut = data.draw(st.integers(0, num_rows))
    assert torch.equal(run(x[order]), whole[order])
    assert torch.equal(torch.cat((run(x[:cut]), run(x[cut:]))), whole)
    row = data.draw(st.integers(0, num_rows - 1))
    assert torch.equal(run(x[row : row + 1]), whole[row : row + 1])
    assert torch.equal(run(x, threaded), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_rows_gives_a_row_the_same_sum(kernels: NativeKernels, dtype: torch.dtype):
    weight, x = numbers(70, 200, dtype=dtype), numbers(30, 200, dtype=dtype, seed=1)
    packed = kernels.pack(weight)
    alone = torch.cat([kernels.linear(row[None], packed, as_float32=True) for row in x])
    for num_rows in range(2, 31):
        assert torch.equal(kernels.linear(x[:num_rows], packed, as_float32=True), alone[:num_rows]), num_rows


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_large_layers_too_are_the_same_on_any_threads(isa: str):
    weight, x = numbers(1000, 900, dtype=torch.bfloat16), numbers(70, 900, dtype=torch.bfloat16, seed=1)
    one, three = open_kernels(isa), open_kernels(isa, 3)
    packed = one.pack(weight)
    whole = one.linear(x, packed)
    for _ in range(20):
        assert torch.equal(three.linear(x, packed), whole)
    assert torch.equal(torch.cat([one.linear(row[None], packed) for row in x]), whole)


@pytest.mark.parametrize(
    ("isa", "num_out", "num_in", "num_rows"),
    [
        ("scalar_tiles", 40, 4800, 112),
        ("amx_bf16", 40, 4800, 300),
        ("amx_bf16", 1000, 3200, 300),
        ("amx_bf16", 70, 64, 1100),
        ("amx_bf16", 20_000, 64, 70),  # past the caches
    ],
)
def test_sums_by_tiles_are_the_same_cut_into_pieces_and_written_in_any_way(
    isa: str, num_out: int, num_in: int, num_rows: int
):
    kernels = open_kernels(isa)
    weight = numbers(num_out, num_in, dtype=torch.bfloat16)
    x = numbers(num_rows, num_in, dtype=torch.bfloat16, seed=1)
    packed = kernels.pack(weight)
    whole = kernels.linear(x, packed, as_float32=True)
    for first, last in ((0, 1), (5, 22), (40, 110), (num_rows - 33, num_rows)):
        assert torch.equal(kernels.linear(x[first:last], packed, as_float32=True), whole[first:last])


@st.composite
def ways_through(draw: st.DrawFn) -> tuple[list[int], list[list[tuple[int, int, int]]]]:
    """Lengths of a few requests, and forwards that take all their tokens, each request's in order."""
    lengths = draw(st.lists(st.integers(1, 600), min_size=1, max_size=3))
    done = [0] * len(lengths)
    forwards = []
    while done != lengths:
        spans = []
        for i in draw(st.permutations(range(len(lengths)))):
            left = lengths[i] - done[i]
            count = draw(st.one_of(st.integers(0, min(left, 5)), st.integers(min(left, 40), left)))
            if count or (not spans and i == len(lengths) - 1 and left):
                spans.append((i, done[i], max(1, count)))
                done[i] += spans[-1][2]
        if spans:
            forwards.append(spans)
    return lengths, forwards


@pytest.mark.parametrize("isa", FAST_ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(
    way=ways_through(),
    group=st.integers(1, 7),
    block_size=st.sampled_from([16, 32, 48]),
    dim=st.sampled_from([16, 64, 80]),
    num_threads=st.integers(1, 3),
)
def test_attention_is_the_same_however_the_texts_are_cut_and_mixed(
    isa: str,
    dtype: torch.dtype,
    way: tuple[list[int], list[list[tuple[int, int, int]]]],
    group: int,
    block_size: int,
    dim: int,
    num_threads: int,
):
    lengths, forwards = way
    shape = Shape(2, group, dim, dim, block_size, dtype)
    alone = open_kernels(isa)
    # Blocks begin as NaN: nothing beyond a request's own tokens may be added, not even times zero.
    wanted_texts = Texts.make(shape, lengths, fill=float("nan"))
    wanted = [wanted_texts.forward(alone, [(i, 0, length)]) for i, length in enumerate(lengths)]
    assert all(bool(rows.isfinite().all()) for rows in wanted)
    texts = Texts.make(shape, lengths, fill=float("nan"))
    kernels = open_kernels(isa, num_threads)
    for spans in forwards:
        out = texts.forward(kernels, spans).split([count for _, _, count in spans])
        for rows, (i, start, count) in zip(out, spans, strict=True):
            assert torch.equal(rows, wanted[i][start : start + count])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(num_rows=st.integers(1, 40), heads=st.integers(1, 4), num_threads=st.integers(1, 3), cut=st.integers(0, 40))
def test_the_small_kernels_keep_rows_apart(
    isa: str, dtype: torch.dtype, num_rows: int, heads: int, num_threads: int, cut: int
):
    width = 64 * heads
    x, gain = numbers(num_rows, 2 * width, dtype=dtype), numbers(2 * width, dtype=dtype, seed=1)
    angles = numbers(num_rows, 64, dtype=dtype, seed=2)

    def run(rows: slice, threads: int) -> list[torch.Tensor]:
        kernels = open_kernels(isa, threads)
        part, turns = x[rows], angles[rows]
        index, is_finite = kernels.argmax(part)
        return [
            kernels.rms_norm(part, gain, 1e-5, part.clone()),
            kernels.silu_mul(part),
            kernels.rope_(part.clone(), turns, turns),
            torch.from_numpy(index),
            torch.from_numpy(is_finite),
        ]

    whole = run(slice(None), num_threads)
    parts = [run(rows, 1) for rows in (slice(0, cut), slice(cut, None))]
    for wanted, *found in zip(whole, *parts, strict=True):
        assert equal_bits(torch.cat(found), wanted)
