from __future__ import annotations

import pytest
import torch

from minedraft.core.blocks import BlocksExhausted
from minedraft_workers.kernels.kvcache import KVCache, LayerShape, storable

SHAPES = [LayerShape(2, 4, 6), LayerShape(1, 3, 3)]


@pytest.fixture
def cache() -> KVCache:
    return KVCache(SHAPES, num_blocks=6, block_size=4, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_value_that_is_not_finite_the_key_says_so(odd: float, dtype: torch.dtype) -> None:
    key, value = torch.ones(3, 4, dtype=dtype), torch.full((3, 6), -2.0, dtype=dtype)
    value[1, 5] = odd
    keys, values = storable(key, value)
    assert keys[1].isnan().all()
    assert torch.equal(keys[[0, 2]], key[[0, 2]])
    assert values.isfinite().all()
    assert torch.equal(values[[0, 2]], value[[0, 2]])


def test_a_release_can_be_repeated_and_strangers_are_ignored(cache: KVCache) -> None:
    cache.resize([(1, 9)])
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
