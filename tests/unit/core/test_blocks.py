"""KV blocks and the scheduler's ledger of them: each owned once or free, totals always balanced."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from minedraft.core.blocks import BlockPool, BlocksExhausted
from minedraft.core.ledger import KvLedger


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=60))
def test_every_block_is_free_or_owned_once_after_any_calls(calls: list[tuple[int, int]]) -> None:
    pool = BlockPool(16, 4)
    for owner, num_tokens in calls:
        if num_tokens == 40:
            pool.release(owner)
        elif pool.num_blocks_for(num_tokens) - pool.num_owned(owner) <= pool.num_free:
            assert len(pool.resize(owner, num_tokens)) == pool.num_blocks_for(num_tokens)
        else:
            before = pool.num_free, list(pool.table(owner))
            with pytest.raises(BlocksExhausted):
                pool.resize(owner, num_tokens)
            assert (pool.num_free, list(pool.table(owner))) == before
        owned = [block for o in pool.owners for block in pool.table(o)]
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(16))
        assert len(owned) + pool.num_free == 16


def test_growing_keeps_the_blocks_already_owned() -> None:
    pool = BlockPool(8, 4)
    first = list(pool.resize(1, 7))
    pool.resize(2, 3)
    assert pool.resize(1, 20)[:2] == first


def test_released_blocks_count_only_after_the_worker_acknowledged() -> None:
    ledger = KvLedger(4, 4, 16)
    ledger.reserve(1, 12)
    ledger.release(1)
    assert ledger.num_free == 1
    assert ledger.will_fit(2, 16, ())
    assert not ledger.can_reserve(2, 16)
    assert ledger.take_releases() == (1,)
    assert ledger.take_releases() == ()
    assert ledger.is_leaving(1)
    ledger.acknowledge((1,))
    assert not ledger.is_leaving(1)
    assert ledger.can_reserve(2, 16)
    assert not ledger.can_reserve(2, 17), "longer than the context"


def test_a_rollback_keeps_its_blocks() -> None:
    ledger = KvLedger(4, 4, 16)
    ledger.reserve(1, 9)
    ledger.reserve(1, 3)
    assert ledger.pool.num_owned(1) == 3
