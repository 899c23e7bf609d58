"""NaN and Inf: as in torch, and never in another row."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from minedraft_workers.native.kernels import NativeKernels
from tests.support.native_caches import Shape, Texts, numbers

DTYPES = [torch.float32, torch.bfloat16]
ODD = (torch.nan, torch.inf, -torch.inf)


def same_kind(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """NaN where NaN is wanted, and each infinity where it is."""
    return all(torch.equal(test(found), test(wanted)) for test in (torch.isnan, torch.isposinf, torch.isneginf))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_layer_passes_them_on_in_their_row_only(kernels: NativeKernels, dtype: torch.dtype):
    weight, x = numbers(40, 34, dtype=dtype), numbers(6, 34, dtype=dtype, seed=1)
    packed = kernels.pack(weight)
    clean = kernels.linear(x, packed)
    for row, odd in enumerate(ODD):
        x[row, 33 - row] = odd
    x[3, 0], x[3, 1] = torch.inf, -torch.inf
    found = kernels.linear(x, packed)
    assert same_kind(found, functional.linear(x.double(), weight.double()))
    assert torch.equal(found[4:], clean[4:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_not_finite_spoils_its_column_only(kernels: NativeKernels, dtype: torch.dtype):
    weight, x = numbers(40, 34, dtype=dtype), numbers(3, 34, dtype=dtype, seed=1)
    weight[7, 5], weight[39, 33] = torch.nan, torch.inf
    found = kernels.linear(x, kernels.pack(weight))
    assert same_kind(found, functional.linear(x.double(), weight.double()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_silu_and_rotary_embedding_do_as_torch_does(kernels: NativeKernels, dtype: torch.dtype):
    x = numbers(5, 64, dtype=dtype)
    for row, odd in enumerate(ODD):
        x[row, 3] = odd
    x[3, 0] = 3e38
    gain = torch.ones(64, dtype=dtype)
    assert same_kind(kernels.rms_norm(x, gain, 1e-5), functional.rms_norm(x.float(), (64,), gain.float(), 1e-5))
    assert same_kind(kernels.silu_mul(x), functional.silu(x[:, :32]) * x[:, 32:])
    cos = sin = torch.ones(5, 64, dtype=dtype)
    wanted = x * cos + torch.cat((-x[:, 32:], x[:, :32]), -1) * sin
    assert same_kind(kernels.rope_(x.clone(), cos, sin), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_is_not_finite_spoils_its_own_head_and_row(kernels: NativeKernels, dtype: torch.dtype):
    texts = Texts.make(Shape(2, 2, dtype=dtype), (20, 30))
    spans = [(0, 0, 20), (1, 0, 30)]
    clean = texts.forward(kernels, spans)
    texts.query[0][5, 64] = torch.nan  # head 1
    spoilt = texts.forward(kernels, spans)
    is_spoilt = spoilt.isnan()
    assert is_spoilt[5, 64:128].all()
    assert is_spoilt.sum() == 64
    assert torch.equal(spoilt[~is_spoilt], clean[~is_spoilt])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", ODD)
def test_a_value_that_is_not_finite_spoils_only_rows_that_see_it(
    kernels: NativeKernels, dtype: torch.dtype, odd: float
):
    texts = Texts.make(Shape(1, 2, dtype=dtype), (40, 10))
    spans = [(0, 0, 40), (1, 0, 10)]
    clean = texts.forward(kernels, spans)
    texts.value[0][24, 7] = odd
    spoilt = texts.forward(kernels, spans)
    assert not spoilt[24:40, [7, 71]].isfinite().any()
    spoilt[24:40, [7, 71]] = clean[24:40, [7, 71]]
    assert torch.equal(spoilt, clean)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("first", [1, 8, 250])
def test_values_that_are_not_finite_spoil_no_row_before_them_wherever_a_span_begins(
    kernels: NativeKernels, dtype: torch.dtype, block_size: int, first: int
):
    texts = Texts.make(Shape(1, 1, 32, 32, block_size, dtype), (first + 40,))
    spans = [(0, 0, first)], [(0, first, 40)]
    clean = torch.cat([texts.forward(kernels, span) for span in spans])
    for at in (first - 1, first + 3, first + 21):
        before = texts.value[0][at, 5].item()
        texts.value[0][at, 5] = torch.nan
        spoilt = torch.cat([texts.forward(kernels, span) for span in spans])
        texts.value[0][at, 5] = before
        assert spoilt[at:, 5].isnan().all()
        spoilt[at:, 5] = clean[at:, 5]
        assert torch.equal(spoilt, clean)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_scores_are_as_in_torchs_softmax(kernels: NativeKernels, dtype: torch.dtype):
    texts = Texts.make(Shape(1, 1, 16, 16, dtype=dtype), (600,))
    for side in (*texts.key, *texts.query):
        side.abs_()
    texts.key[0][0] = -torch.inf  # the first row sees nothing else; later ones leave it out
    texts.key[0][550] = torch.inf
    found = texts.forward(kernels, [(0, 0, 600)])
    assert found[0].isnan().all()
    assert found[1:550].isfinite().all()
    assert found[550:].isnan().all()
    torch.testing.assert_close(found[1:550].double(), texts.reference(0)[1:550], rtol=2e-2, atol=2e-2)
