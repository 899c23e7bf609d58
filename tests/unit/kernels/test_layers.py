"""Packed linears and one-call norms against the modules they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from minedraft_workers.execution.norm import FastRMSNorm, replace_rms_norms
from minedraft_workers.kernels.linear import (
    HalfStoredLinear,
    PackedLinear,
    can_pack,
    fastest_dtype,
    half_scale,
    pack_linears,
)

needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch build has no packed linears")


def linear(*, bias: bool, scale: float = 1.0, is_bf16: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(96, 80, bias=bias).requires_grad_(False)
    layer.weight.mul_(scale)
    if is_bf16:
        layer.weight.copy_(layer.weight.bfloat16())
    return layer


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 64, 65])
@pytest.mark.parametrize("is_bf16", [True, False])
def test_a_packed_linear_gives_the_same_numbers(bias: bool, rows: int, is_bf16: bool) -> None:
    dense = linear(bias=bias, is_bf16=is_bf16)
    model = nn.Sequential(dense)
    assert pack_linears(model, torch.float32) == (80 * 96 * 2 if is_bf16 else 0)
    assert isinstance(model[0], HalfStoredLinear if is_bf16 else PackedLinear)
    x = torch.randn(1, rows, 96)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-5, atol=1e-5)


@needs_packing
@pytest.mark.parametrize("size", [1e-7, 1e5])
def test_weights_outside_float16s_range_are_scaled_by_a_power_of_two(size: float) -> None:
    dense = linear(bias=True, scale=size, is_bf16=True)
    model = nn.Sequential(dense)
    pack_linears(model, torch.float32)
    assert isinstance(model[0], HalfStoredLinear)
    x = torch.randn(5, 96)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-5, atol=size * 1e-5)


def test_only_what_loses_nothing_is_stored_as_float16() -> None:
    assert half_scale(torch.tensor([[0.5, -3.0]])) == 1.0
    assert half_scale(torch.zeros(2, 2)) == 1.0
    assert half_scale(torch.tensor([[0.1, 0.5]])) is None  # 0.1 needs all of float32's digits
    assert half_scale(torch.tensor([[torch.nan, 0.5]])) is None
    assert half_scale(torch.tensor([[torch.inf, 0.5]])) is None
    assert half_scale(torch.tensor([[1e5]]).bfloat16().float()) == 0.5


@needs_packing
def test_a_nan_weight_stays_in_its_own_column() -> None:
    dense = linear(bias=False)
    dense.weight[3, 5] = torch.nan
    model = nn.Sequential(dense)
    pack_linears(model, torch.float32)
    is_nan = model(torch.ones(2, 96)).isnan()
    assert is_nan[:, 3].all()
    assert is_nan.sum() == 2


def test_auto_dtype_is_one_of_the_two() -> None:
    assert fastest_dtype() in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm])
def test_an_rms_norm_is_replaced_by_the_one_that_gives_its_numbers(kind: type[nn.Module]) -> None:
    norm = kind(48, eps=1e-6)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(norm)
    assert replace_rms_norms(model, torch.float32) == 1
    assert isinstance(model[0], FastRMSNorm)
    x = torch.randn(3, 48)
    torch.testing.assert_close(model(x), norm(x))


def test_a_norm_of_another_kind_is_left_alone() -> None:
    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).abs()

    model = nn.Sequential(OddRMSNorm(8))
    assert replace_rms_norms(model, torch.float32) == 0
    assert replace_rms_norms(nn.Sequential(LlamaRMSNorm(8)), torch.bfloat16) == 0
