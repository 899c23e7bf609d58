"""Seats, alternation and rebalancing of the two batch queues."""

from __future__ import annotations

import pytest

from minedraft.core.batches import BatchManager
from minedraft.core.request import NewRequest, Request
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch


def make_request(request_id: int) -> Request:
    return Request.create(request_id, NewRequest((1,), SamplingParams()))


def test_a_burst_alternates_between_the_batches_starting_with_the_one_drafted_next() -> None:
    manager = BatchManager(2, 8)
    assert [manager.join(make_request(i), Batch.B) for i in range(4)] == [Batch.B, Batch.A, Batch.B, Batch.A]


def test_a_newcomer_joins_the_smaller_batch() -> None:
    manager = BatchManager(2, 8)
    requests = [make_request(i) for i in range(4)]
    for request in requests:
        manager.join(request, Batch.A)
    manager.leave(requests[1])
    assert manager.join(make_request(9), Batch.A) is Batch.B


@pytest.mark.parametrize("num_batches", [1, 2])
def test_there_are_max_batch_size_seats_a_batch(num_batches: int) -> None:
    manager = BatchManager(num_batches, 3)
    for i in range(3 * num_batches):
        assert manager.has_seat()
        manager.join(make_request(i), Batch.A)
    assert not manager.has_seat()


def test_the_newest_request_outside_a_round_moves_when_sizes_differ_by_two() -> None:
    manager = BatchManager(2, 8)
    requests = [make_request(i) for i in range(6)]
    for request in requests:
        manager.join(request, Batch.A)
    for request in list(manager.members(Batch.B))[:2]:
        manager.leave(request)
    requests[4].num_open_rounds = 1
    assert manager.rebalance(Batch.B) is None
    assert manager.rebalance(Batch.A) is requests[2]
    assert requests[2].batch is Batch.B
    assert manager.rebalance(Batch.A) is None


def test_one_batch_never_rebalances() -> None:
    manager = BatchManager(1, 8)
    for i in range(5):
        assert manager.join(make_request(i), Batch.B) is Batch.A
    assert manager.rebalance(Batch.A) is None
