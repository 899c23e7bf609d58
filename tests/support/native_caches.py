"""Paged caches filled by the kernels themselves, and attention as torch computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.tensors import LayerCache, SpanPlan


@dataclass(frozen=True)
class Shape:
    """heads: of keys; group: query heads that share one."""

    heads: int = 2
    group: int = 3
    key_dim: int = 64
    value_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def scale(self) -> float:
        return self.key_dim**-0.5


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def empty_cache(shape: Shape, num_blocks: int, fill: float = 0.0) -> LayerCache:
    def tensor(dim: int) -> torch.Tensor:
        count = LayerCache.num_elements(num_blocks, shape.block_size, shape.heads, dim)
        return torch.full((count,), fill, dtype=shape.dtype)

    keys, values = tensor(shape.key_dim), tensor(shape.value_dim)
    return LayerCache(keys, values, num_blocks, shape.block_size, shape.heads, shape.key_dim, shape.value_dim)


def scattered_tables(lengths: Sequence[int], block_size: int, seed: int = 0) -> tuple[list[list[int]], int]:
    """Block tables for requests of these lengths, ids in random order; and how many blocks there are."""
    sizes = [-(-length // block_size) for length in lengths]
    ids = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [ids[end - size : end] for end, size in zip(ends, sizes, strict=True)], sum(sizes)


@dataclass(frozen=True)
class Texts:
    """Keys, values and queries of whole requests, one after the other, and the cache they are stored in."""

    shape: Shape
    lengths: tuple[int, ...]
    cache: LayerCache
    tables: list[list[int]]
    key: list[torch.Tensor]
    value: list[torch.Tensor]
    query: list[torch.Tensor]

    @classmethod
    def make(cls, shape: Shape, lengths: Sequence[int], *, seed: int = 0, fill: float = 0.0) -> Texts:
        tables, num_blocks = scattered_tables(lengths, shape.block_size, seed)

        def rows(width: int, kind: int) -> list[torch.Tensor]:
            return [
                numbers(length, width, dtype=shape.dtype, seed=seed + 3 * i + kind) for i, length in enumerate(lengths)
            ]

        key, value = rows(shape.heads * shape.key_dim, 0), rows(shape.heads * shape.value_dim, 1)
        query = rows(shape.heads * shape.group * shape.key_dim, 2)
        return cls(shape, tuple(lengths), empty_cache(shape, num_blocks, fill), tables, key, value, query)

    def plan(self, spans: Sequence[tuple[int, int, int]]) -> SpanPlan:
        """spans: (request, first token, tokens)."""
        return SpanPlan.make(
            [start for _, start, _ in spans],
            [count for _, _, count in spans],
            [self.tables[i] for i, _, _ in spans],
            num_blocks=self.cache.num_blocks,
            block_size=self.cache.block_size,
        )

    def forward(self, kernels: NativeKernels, spans: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Store the spans' keys and values, then attend."""
        plan = self.plan(spans)

        def packed(parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([parts[i][start : start + count] for i, start, count in spans])

        kernels.store(self.cache, packed(self.key), packed(self.value), plan)
        return kernels.attend(self.cache, packed(self.query), plan, self.shape.scale)

    def reference(self, request: int) -> torch.Tensor:
        """float64 attention of one whole request: [length, heads * group * value_dim]."""
        shape = self.shape
        length = self.lengths[request]
        query = self.query[request].double().view(length, -1, shape.key_dim).transpose(0, 1)
        key = self.key[request].double().view(length, -1, shape.key_dim).transpose(0, 1)
        value = self.value[request].double().view(length, -1, shape.value_dim).transpose(0, 1)
        key, value = (side.repeat_interleave(shape.group, 0) for side in (key, value))
        scores = (query @ key.transpose(1, 2)) * shape.scale
        scores.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        return (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, -1)
