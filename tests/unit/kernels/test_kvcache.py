from __future__ import annotations

import pytest
import torch

from minedraft.core.blocks import BlocksExhausted
from minedraft_workers.kernels.kvcache import KVCache, LayerShape

SHAPES = [LayerShape(2, 4, 6), LayerShape(1, 3, 3)]


@pytest.fixture
def cache() -> KVCache:
    return KVCache(SHAPES, num_blocks=6, block_size=4, dtype=torch.float32, device=torch.device("cpu"))


def fill(cache: KVCache, owner: int, num_tokens: int) -> None:
    (table,) = cache.resize([(owner, num_tokens)])
    for shape, keys, values in zip(cache.layers, cache.keys, cache.values, strict=True):
        for block in table:
            for rows in (keys, values):
                rows[block * shape.num_heads : (block + 1) * shape.num_heads] = torch.nan


def test_freed_blocks_are_zero_again(cache: KVCache) -> None:
    fill(cache, 1, 24)
    cache.resize([(1, 5)])
    assert sum(int(rows.isnan().any(1).sum()) for rows in cache.keys) == 2 * (2 + 1)
    cache.release(1)
    assert not any(rows.any() for rows in (*cache.keys, *cache.values))


def test_a_release_can_be_repeated_and_strangers_are_ignored(cache: KVCache) -> None:
    fill(cache, 1, 9)
    assert (cache.length(1), cache.pool.num_free) == (9, 3)
    for owner in (1, 1, 7):
        cache.release(owner)
    assert (cache.length(1), cache.pool.num_free) == (0, 6)


def test_requests_are_resized_together_or_not_at_all(cache: KVCache) -> None:
    cache.resize([(1, 16), (2, 4)])
    with pytest.raises(BlocksExhausted):
        cache.resize([(1, 17), (2, 12)])
    assert (cache.length(1), cache.length(2), cache.pool.num_free) == (16, 4, 1)
    # The first gives up three blocks that the second takes.
    cache.resize([(2, 17), (1, 4)])
    assert (cache.length(1), cache.length(2), cache.pool.num_free) == (4, 17, 0)


def test_block_bytes_count_all_layers() -> None:
    assert KVCache.block_bytes(SHAPES, 4, torch.float32) == 4 * 4 * (2 * 10 + 6)
    assert KVCache.block_bytes(SHAPES, 4, torch.bfloat16) == 4 * 2 * (2 * 10 + 6)
