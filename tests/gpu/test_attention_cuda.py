"""Attention at the sizes of real models on a CUDA device, whose blocks hold NaN wherever nothing was written. Not run
on hardware by the people who wrote it; how to run it is in test_executor_cuda.py.

Models of a test are small, and what the controlled pair answers does not depend on attention: here it is compared.
"""

from __future__ import annotations

import random

import pytest
import torch

from minedraft_workers.device import make_exact
from minedraft_workers.execution.graphs.capture import CudaGraphs
from minedraft_workers.kernels.tables import LayerShape, QuerySpan
from minedraft_workers.kernels.triton_kernels import PiecePlan, TritonLayer, TritonLayerKernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda")
BLOCK_SIZE, NUM_BLOCKS = 16, 400
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Key heads, query heads of each, their size: of Llama 8B and 1B, Qwen 1.5B and 0.5B, SmolLM2, and large ones.
SHAPES = [
    (8, 4, 128, torch.bfloat16),
    (8, 4, 64, torch.bfloat16),
    (2, 6, 128, torch.bfloat16),
    (2, 7, 64, torch.bfloat16),
    (3, 3, 64, torch.bfloat16),
    (1, 16, 256, torch.bfloat16),
    (8, 4, 128, torch.float32),
    (1, 16, 256, torch.float32),
]
# Cached and new tokens of each request: decodes, verifies, chunks of prompts; by one token around a block and a turn.
SPANS = [(0, 1), (15, 1), (16, 5), (63, 1), (64, 2), (127, 8), (600, 5), (0, 70), (300, 130)]


class Texts:
    """Requests with random keys and values, the same in every run, in a cache of the Triton kernels."""

    def __init__(self, heads: int, dim: int, dtype: torch.dtype) -> None:
        make_exact()
        self._generator = torch.Generator().manual_seed(1)
        self.shape, self.dtype = LayerShape(heads, dim, dim), dtype
        self.kernels = TritonLayerKernels(DEVICE, dtype)
        self.cache = self.kernels.make_cache([self.shape], NUM_BLOCKS, BLOCK_SIZE, dtype)
        self.layer: TritonLayer = self.cache.layer_caches[0]
        self.layer.keys.fill_(torch.nan)
        self.layer.values.fill_(torch.nan)
        self.sides: list[tuple[torch.Tensor, torch.Tensor]] = []

    def rand(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=self._generator).to(DEVICE, self.dtype)

    def store(self, lengths: list[int]) -> list[QuerySpan]:
        """Cache so many tokens of each request, in blocks that are dealt at random; return their tables as spans."""
        order = random.Random(2).sample(range(len(lengths)), len(lengths))
        spans = [QuerySpan(0, 1, (0,))] * len(lengths)
        for index in order:
            (table,) = self.cache.resize([(index, lengths[index])])
            spans[index] = QuerySpan(0, lengths[index], table)
        width = self.shape.num_heads * self.shape.key_dim
        self.sides = [(self.rand(length, width), self.rand(length, width)) for length in lengths]
        keys, values = (torch.cat(side) for side in zip(*self.sides, strict=True))
        self.kernels.store(self.layer, keys, values, self.kernels.plan(self.cache, spans))
        return spans

    def reference(self, request: int, query: torch.Tensor, start: int) -> torch.Tensor:
        """Attend rows [n, heads * dim], the first of them token `start`, in float64."""
        shape, dim = self.shape, self.shape.key_dim
        keys, values = (side.double().view(len(side), shape.num_heads, dim) for side in self.sides[request])
        group = query.shape[1] // (shape.num_heads * dim)
        queries = query.double().view(len(query), shape.num_heads, group, dim)
        scores = torch.einsum("qhgd,khd->hgqk", queries, keys) * dim**-0.5
        place = torch.arange(len(keys), device=DEVICE)
        scores.masked_fill_(place > start + place[: len(query), None], -torch.inf)
        return torch.einsum("hgqk,khd->qhgd", scores.softmax(-1), values).reshape(query.shape)


@pytest.mark.parametrize(("heads", "group", "dim", "dtype"), SHAPES)
def test_every_row_attends_to_its_own_tokens(heads: int, group: int, dim: int, dtype: torch.dtype) -> None:
    texts = Texts(heads, dim, dtype)
    stored = texts.store([start + length for start, length in SPANS])
    spans = [QuerySpan(start, length, span.table) for (start, length), span in zip(SPANS, stored, strict=True)]
    query = texts.rand(sum(length for _, length in SPANS), heads * group * dim)
    found = texts.kernels.attend(texts.layer, query, texts.kernels.plan(texts.cache, spans), dim**-0.5)
    first = 0
    for request, (start, length) in enumerate(SPANS):
        rows = slice(first, first + length)
        wanted = texts.reference(request, query[rows], start)
        torch.testing.assert_close(found[rows].double(), wanted, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
        first += length


@pytest.mark.parametrize(("heads", "group", "dim", "dtype"), SHAPES[:2])
def test_a_captured_graph_attends_to_whatever_its_plan_says_now(
    heads: int, group: int, dim: int, dtype: torch.dtype
) -> None:
    texts = Texts(heads, dim, dtype)
    stored = texts.store([200, 330, 90, 517])
    query = texts.rand(8, heads * group * dim)
    pieces = torch.zeros(8, 3, dtype=torch.int64, device=DEVICE)
    tables = torch.zeros(8, 40, dtype=torch.int64, device=DEVICE)
    plan = PiecePlan(pieces, tables, torch.zeros(8, dtype=torch.int64, device=DEVICE), has_padding=True)
    graph = CudaGraphs()(lambda: (texts.kernels.attend(texts.layer, query, plan, dim**-0.5),))
    for owners, length in (((0, 1), 1), ((3, 2, 1, 0), 2), ((2,), 5)):
        spans = [QuerySpan(stored[i].num_tokens - length, length, stored[i].table) for i in owners]
        now, num_rows = texts.kernels.plan(texts.cache, spans), length * len(owners)
        pieces.zero_()
        pieces[: len(now.pieces)] = now.pieces
        tables[: len(now.tables), : now.tables.shape[1]] = now.tables
        graph.replay()
        wanted = texts.kernels.attend(texts.layer, query[:num_rows], now, dim**-0.5)
        assert torch.equal(graph.output[0][:num_rows], wanted)
        assert not graph.output[0][num_rows:].any(), "the rows of padding stay zeros"


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_lost_to_the_rows_that_see_it(odd: float) -> None:
    texts = Texts(2, 128, torch.bfloat16)
    (span,) = texts.store([130])
    query, plan = texts.rand(130, 2 * 4 * 128), texts.kernels.plan(texts.cache, [span])
    clean = texts.kernels.attend(texts.layer, query, plan, 0.1)
    keys, values = texts.sides[0]
    values[125, 200] = odd  # of the second head
    texts.kernels.store(texts.layer, keys, values, plan)
    found = texts.kernels.attend(texts.layer, query, plan, 0.1)
    assert not found[125:, 512:].isfinite().any()
    assert torch.equal(found[:125], clean[:125])
    assert torch.equal(found[:, :512], clean[:, :512])
