"""Paged attention against torch: any mix of spans, head counts, dimensions and block sizes."""

from __future__ import annotations

import pytest
import torch

from minedraft_workers.native.build import REFERENCES
from minedraft_workers.native.kernels import NativeKernels
from tests.support.native_caches import Shape, Texts
from tests.unit.native.conftest import open_kernels

TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 1.5e-2}
SHAPES = [
    Shape(3, 3, 64, 64),
    Shape(2, 6, 128, 128),
    Shape(1, 1, 80, 96),
    Shape(2, 13, 96, 80),
    Shape(1, 2, 16, 16, block_size=48),
    Shape(2, 2, 32, 32, block_size=1),
    Shape(2, 2, 64, 64, block_size=5),
    Shape(1, 4, 64, 64, block_size=20),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_attends_to_its_own_tokens_up_to_itself(kernels: NativeKernels, shape: Shape, dtype: torch.dtype):
    shape = Shape(shape.heads, shape.group, shape.key_dim, shape.value_dim, shape.block_size, dtype)
    # Of each text a first part is cached already; then decode, verify and prompt rows meet in one forward.
    lengths = (1, 17, 300, 290, 40)
    cached = (0, 16, 296, 200, 0)
    texts = Texts.make(shape, lengths)
    texts.forward(kernels, [(i, 0, count) for i, count in enumerate(cached) if count])
    spans = [(i, start, length - start) for i, (start, length) in enumerate(zip(cached, lengths, strict=True))]
    out = texts.forward(kernels, spans)
    wanted = torch.cat([texts.reference(i)[start:] for i, start, _ in spans])
    torch.testing.assert_close(out.double(), wanted, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_context_is_as_accurate(kernels: NativeKernels, dtype: torch.dtype):
    if kernels.isa in REFERENCES:
        pytest.skip("the scalar reference is slow; the chunks of 256 tokens are met above")
    texts = Texts.make(Shape(1, 2, dtype=dtype), (2050,))
    out = texts.forward(kernels, [(0, 0, 2050)])
    torch.testing.assert_close(out.double(), texts.reference(0), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.key_dim % 32 == 0], ids=str)
def test_tiles_attend_as_their_scalar_emulation_does(shape: Shape):
    results = []
    for kernels in (open_kernels("amx_bf16"), open_kernels("scalar_tiles")):
        texts = Texts.make(shape, (1, 17, 270, 40))
        texts.forward(kernels, [(2, 0, 250)])
        results.append(texts.forward(kernels, [(0, 0, 1), (1, 0, 17), (2, 250, 20), (3, 0, 40)]))
    assert torch.equal(*results)


def test_scores_of_any_size_do_not_overflow(kernels: NativeKernels):
    texts = Texts.make(Shape(dtype=torch.float32), (300,))
    for key, query in zip(texts.key, texts.query, strict=True):
        key *= 1e4
        query *= 1e4
    out = texts.forward(kernels, [(0, 0, 300)])
    torch.testing.assert_close(out.double(), texts.reference(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_tokens_lie_as_the_layout_is_drawn(kernels: NativeKernels, dtype: torch.dtype):
    shape = Shape(2, 1, 32, 48, 32, dtype)
    texts = Texts.make(shape, (40,))
    texts.forward(kernels, [(0, 0, 40)])
    blocks = texts.tables[0]
    if dtype == torch.bfloat16:
        keys = texts.cache.keys.view(-1, 2, 2, 16, 16, 2)  # block, head, tile, pair of dimensions, token, one of two
        keys = keys.permute(0, 2, 4, 1, 3, 5).reshape(-1, 32, 64)
        values = texts.cache.values.view(-1, 2, 16, 48, 2)  # block, head, pair of tokens, dimension, one of two
        values = values.permute(0, 2, 4, 1, 3).reshape(-1, 32, 96)
    else:
        keys = texts.cache.keys.view(-1, 2, 2, 32, 16).permute(0, 2, 4, 1, 3).reshape(-1, 32, 64)
        values = texts.cache.values.view(-1, 2, 32, 48).permute(0, 2, 1, 3).reshape(-1, 32, 96)
    for side, wanted in ((keys, texts.key[0]), (values, texts.value[0])):
        assert torch.equal(side[blocks].reshape(64, -1)[:40], wanted)
