"""The mirror of a worker that holds no KV: everything fits, and releases are sent all the same."""

from minedraft.core.ledger import KvLedger


def test_where_no_kv_is_held_only_the_context_limits_a_request():
    ledger = KvLedger(num_blocks=0, block_size=16, max_model_len=1 << 20)
    assert ledger.capacity == 1 << 20
    for request_id in range(100):
        assert ledger.can_reserve(request_id, 1 << 20, headroom=1000)
        ledger.reserve(request_id, 1 << 12)
    assert not ledger.can_reserve(0, (1 << 20) + 1)
    assert (ledger.num_blocks, ledger.num_free) == (0, 0)


def test_where_no_kv_is_held_the_worker_is_told_all_the_same_who_has_left():
    ledger = KvLedger(num_blocks=0, block_size=16, max_model_len=64)
    ledger.reserve(7, 10)
    ledger.release(7)
    assert ledger.take_releases() == (7,)
    assert ledger.is_leaving(7)
    ledger.acknowledge((7,))
    assert not ledger.is_leaving(7)
