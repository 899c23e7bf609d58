"""Norm, rotary embedding, silu and argmax: in bfloat16 the same bits as transformers' own operators."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from minedraft_workers.native.kernels import NativeKernels
from tests.support.native_caches import numbers

DTYPES = [torch.float32, torch.bfloat16]


def assert_almost_all_bits_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Sums in another order, or another exponential, may tip a rounding of bfloat16 once in a while."""
    tolerance = 8e-3 if wanted.dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=1e-6)
    if wanted.dtype == torch.bfloat16:
        assert (found != wanted).float().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [576, 64, 33, 5])
@torch.no_grad()
def test_a_norm_is_llamas(kernels: NativeKernels, dtype: torch.dtype, size: int):
    norm = LlamaRMSNorm(size, 1e-5).to(dtype)
    norm.weight.copy_(numbers(size, dtype=dtype))
    x = numbers(3, size, dtype=dtype, seed=1) * torch.tensor([[1e-3], [1.0], [300.0]], dtype=dtype)
    assert_almost_all_bits_equal(kernels.rms_norm(x, norm.weight, 1e-5), norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_residual_is_added_before_the_norm_and_kept(kernels: NativeKernels, dtype: torch.dtype):
    norm = LlamaRMSNorm(50, 1e-6).to(dtype)
    x, residual = numbers(4, 50, dtype=dtype), numbers(4, 50, dtype=dtype, seed=1)
    wanted_sum = x + residual
    out = kernels.rms_norm(x, norm.weight, 1e-6, residual, x)
    assert out is x
    assert torch.equal(residual, wanted_sum)
    assert_almost_all_bits_equal(out, norm(wanted_sum))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 6])
def test_rotary_embedding_has_the_bits_of_transformers(kernels: NativeKernels, dtype: torch.dtype, dim: int):
    query, key = numbers(5, 3 * dim, dtype=dtype), numbers(5, dim, dtype=dtype, seed=1)
    angles = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(dim // 2) * 2 / dim)
    cos, sin = (f(torch.cat((angles, angles), -1)).to(dtype) for f in (torch.cos, torch.sin))
    heads = [side.view(5, -1, dim).transpose(0, 1)[None] for side in (query, key)]
    wanted = [side[0].transpose(0, 1).reshape(5, -1) for side in apply_rotary_pos_emb(*heads, cos[None], sin[None])]
    both = torch.cat((query, key, key), -1)
    kernels.rope_(both[:, : 4 * dim], cos, sin)
    assert torch.equal(both, torch.cat((*wanted, key), -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1536, 40, 3])
def test_silu_times_up(kernels: NativeKernels, dtype: torch.dtype, size: int):
    gate_up = numbers(6, 2 * size, dtype=dtype) * 4
    gate_up[0, 0], gate_up[1, 0] = 80.0, -80.0
    wanted = functional.silu(gate_up[:, :size]) * gate_up[:, size:]
    assert_almost_all_bits_equal(kernels.silu_mul(gate_up), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_columns", [1, 15, 16, 1000, 49152])
def test_argmax_is_the_first_of_the_largest(kernels: NativeKernels, dtype: torch.dtype, num_columns: int):
    x = numbers(5, num_columns, dtype=dtype)
    x[1] = 3.0
    x[2, num_columns // 2 :] = x[2].max()
    x[3] = -torch.inf
    index, is_finite = kernels.argmax(x)
    wanted = [int((row == row.max()).nonzero()[0]) for row in x]
    assert index.tolist() == wanted
    assert is_finite.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 500, 999])
def test_argmax_finds_what_is_not_finite_and_takes_nan_for_the_largest(
    kernels: NativeKernels, dtype: torch.dtype, place: int
):
    x = numbers(4, 1000, dtype=dtype)
    x[0, place], x[1, place], x[2, place] = torch.nan, torch.inf, -torch.inf
    x[0, 999] = torch.inf if place < 999 else torch.nan
    index, is_finite = kernels.argmax(x)
    assert index[:2].tolist() == [place, place]
    assert index[2:].tolist() == x[2:].argmax(-1).tolist()
    assert is_finite.tolist() == [False, False, False, True]
