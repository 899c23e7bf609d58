"""Linear layers against torch, over dtypes, shapes that fill no panel, biases and strides."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.tensors import lossless_dtype
from tests.support.native_caches import numbers
from tests.unit.native.conftest import open_kernels

SHAPES = [(576, 576, 1), (96, 64, 4), (33, 7, 3), (1, 1, 1), (100, 130, 13), (64, 63, 40)]


@pytest.mark.parametrize(("num_out", "num_in", "num_rows"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_bfloat16_is_the_exact_sum_rounded_once(
    kernels: NativeKernels, num_out: int, num_in: int, num_rows: int, has_bias: bool
):
    weight, x = (numbers(n, num_in, dtype=torch.bfloat16, seed=n) for n in (num_out, num_rows))
    bias = numbers(num_out, dtype=torch.bfloat16) if has_bias else None
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    packed = kernels.pack(weight, bias)
    full, rounded = kernels.linear(x, packed, as_float32=True), kernels.linear(x, packed)
    torch.testing.assert_close(full.double(), exact, rtol=1e-5, atol=1e-4)
    assert torch.equal(rounded, full.bfloat16())


@pytest.mark.parametrize(("num_out", "num_in", "num_rows"), SHAPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_keeps_float32_accuracy_whatever_its_weights_are_stored_in(
    kernels: NativeKernels, num_out: int, num_in: int, num_rows: int, stored: torch.dtype
):
    weight = numbers(num_out, num_in, dtype=stored)
    x, bias = numbers(num_rows, num_in, dtype=torch.float32), numbers(num_out, dtype=torch.float32)
    y = kernels.linear(x, kernels.pack(weight, bias))
    exact = functional.linear(x.double(), weight.double(), bias.double())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=2e-5)


def test_rows_at_any_distance_are_read_and_written_in_place(kernels: NativeKernels):
    weight = numbers(48, 40, dtype=torch.bfloat16)
    wide, out = numbers(5, 100, dtype=torch.bfloat16), torch.full((5, 64), 7.0, dtype=torch.bfloat16)
    packed = kernels.pack(weight)
    returned = kernels.linear(wide[:, 30:70], packed, out[:, 8:56])
    assert torch.equal(returned, kernels.linear(wide[:, 30:70].contiguous(), packed))
    assert (out[:, :8] == 7).all()
    assert (out[:, 56:] == 7).all()


def test_no_rows_give_no_rows(kernels: NativeKernels):
    assert kernels.linear(torch.empty(0, 32), kernels.pack(torch.ones(16, 32))).shape == (0, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_in", [64, 33])
def test_packed_rows_are_read_back_as_they_were(kernels: NativeKernels, dtype: torch.dtype, num_in: int):
    weight, ids = numbers(70, num_in, dtype=dtype), torch.tensor([69, 0, 33, 33])
    assert torch.equal(kernels.rows(kernels.pack(weight), ids), weight[ids])


EMULATED = (("avx512_bf16", "scalar"), ("amx_bf16", "scalar_tiles"))


@pytest.mark.parametrize(("isa", "emulation"), EMULATED)
@pytest.mark.parametrize("num_in", [96, 31])
@pytest.mark.parametrize("num_rows", [7, 33, 50, 101])
def test_the_instruction_rounds_as_its_scalar_emulation_does(isa: str, emulation: str, num_in: int, num_rows: int):
    real, emulated = open_kernels(isa), open_kernels(emulation)
    weight, x = (numbers(n, num_in, dtype=torch.bfloat16, seed=n) for n in (70, num_rows))
    # Numbers of very different size, with subnormal ones: here the order and the rounding of a sum show.
    weight[:, ::3] *= 1e-30
    x[:, ::3] *= 1e-10
    x[:, 1::5] *= 1e20
    for as_float32 in (True, False):
        results = [k.linear(x, k.pack(weight), as_float32=as_float32) for k in (real, emulated)]
        assert torch.equal(*results)


@pytest.mark.parametrize(("isa", "emulation"), EMULATED)
def test_the_instruction_rounds_any_bits_as_its_scalar_emulation_does(isa: str, emulation: str):
    """Subnormal numbers, infinities, NaN and sums beyond the range among them."""
    real, emulated = open_kernels(isa), open_kernels(emulation)
    generator = torch.Generator().manual_seed(0)
    for num_in, lowest, highest in ((32, 0, 256), (64, 0, 256), (34, 40, 90), (128, 0, 70), (96, 100, 160)):
        weight, x = (random_bits(rows, num_in, lowest, highest, generator) for rows in (96, 40))
        found, wanted = (k.linear(x, k.pack(weight), as_float32=True) for k in (real, emulated))
        assert torch.equal(found.isnan(), wanted.isnan())
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


def random_bits(rows: int, columns: int, lowest: int, highest: int, generator: torch.Generator) -> torch.Tensor:
    """Return bfloat16 numbers of any sign and fraction, with exponents from `lowest` to below `highest`."""
    shape = rows, columns
    exponent = torch.randint(lowest, highest, shape, generator=generator)
    rest = torch.randint(0, 128, shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator)
    return (sign * 32768 + exponent * 128 + rest).to(torch.uint16).view(torch.bfloat16)


def test_weights_are_stored_in_the_shortest_dtype_that_loses_nothing():
    weight = numbers(8, 8, dtype=torch.float32)
    assert lossless_dtype(weight) == torch.float32
    assert lossless_dtype(weight.bfloat16().float()) == torch.bfloat16
    assert lossless_dtype(weight.half().float()) == torch.float16
