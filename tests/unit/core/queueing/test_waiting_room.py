"""What may wait, and who gives way: the bounds of the waiting room, and paused requests in it."""

from __future__ import annotations

import pytest

from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest, Request
from minedraft.core.rounds import RoundPlan
from minedraft.core.scheduler import Scheduler
from minedraft.errors import Overloaded
from minedraft.messages import Verdict
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch, Mode


def a_scheduler(num_blocks: int = 100, **limits: object) -> Scheduler:
    given = {"mode": Mode.AR, "max_batch_size": 1, "max_model_len": 64, "prefill_chunk": 64} | limits
    return Scheduler(SchedulerLimits(**given), KvLedger(num_blocks, 4, 64), None)


def add(scheduler: Scheduler, prompt_len: int = 4, max_new_tokens: int = 8) -> Request:
    return scheduler.add(NewRequest(tuple(range(prompt_len)), SamplingParams(max_new_tokens=max_new_tokens)))


def run_round(scheduler: Scheduler) -> RoundPlan | None:
    """Run one round and acknowledge its releases; each request gets a token."""
    plan = scheduler.plan(Batch.A)
    kv = scheduler.verifier_kv
    if plan is not None:
        spans = scheduler.assemble(plan, ())
        verdicts = [Verdict(s.request_id, s.prefix_len + len(s.tokens), 0, (9,)) for s in spans]
        scheduler.commit(plan, spans, verdicts)
    kv.acknowledge(kv.take_releases())
    return plan


def test_requests_that_wait_are_bounded_by_number_and_by_tokens() -> None:
    scheduler = a_scheduler(max_waiting=3, max_waiting_tokens=60)
    add(scheduler, 40)  # it has a seat
    run_round(scheduler)
    add(scheduler, 40)
    with pytest.raises(Overloaded, match="requests of 40 tokens are waiting, this one has 21, the limit is 60"):
        add(scheduler, 21)
    add(scheduler, 20)
    with pytest.raises(Overloaded, match="60 tokens"):
        add(scheduler, 1)
    assert len(scheduler.room.queue) == 2
    scheduler = a_scheduler(max_waiting=2)
    run_round_of = [add(scheduler) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 requests are waiting, the limit is 3"):
        add(scheduler)
    assert run_round_of


def test_one_request_may_wait_whatever_its_length() -> None:
    scheduler = a_scheduler(max_waiting_tokens=10)
    add(scheduler, 4)
    run_round(scheduler)
    add(scheduler, 50)
    with pytest.raises(Overloaded):
        add(scheduler, 1)


def test_a_paused_request_gives_its_seat_to_others_and_keeps_its_kv() -> None:
    scheduler = a_scheduler()
    slow, other = add(scheduler), add(scheduler)
    run_round(scheduler)
    scheduler.pause(slow.id)
    run_round(scheduler)
    assert other.output_len == 1
    assert slow.batch is None
    assert scheduler.verifier_kv.pool.num_owned(slow.id) > 0
    scheduler.resume(slow.id)
    while other.id in scheduler.requests:
        run_round(scheduler)
    plan = run_round(scheduler)
    assert plan is not None
    assert [(span.request.id, span.num_tokens) for span in plan.spans] == [(slow.id, 1)], "nothing is computed again"


def test_a_request_that_is_paused_in_a_round_leaves_at_its_end_and_none_follows_it() -> None:
    scheduler = a_scheduler()
    slow = add(scheduler)
    run_round(scheduler)
    plan = scheduler.plan(Batch.A)
    assert plan is not None
    scheduler.pause(slow.id)
    assert slow.batch is Batch.A
    assert scheduler.follow(plan) is None
    scheduler.commit(plan, scheduler.assemble(plan, ()), [Verdict(slow.id, 5, 0, (9,))])
    assert slow.batch is None
    assert scheduler.plan(Batch.A) is None


def test_the_kv_of_a_paused_request_is_for_whoever_needs_it() -> None:
    scheduler = a_scheduler(num_blocks=16, max_waiting=4)
    slow = add(scheduler, 20, 40)
    run_round(scheduler)
    scheduler.pause(slow.id)
    run_round(scheduler)
    newcomer = add(scheduler, 50, 10)
    run_round(scheduler)
    assert scheduler.verifier_kv.pool.num_owned(slow.id) == 0
    run_round(scheduler)
    assert newcomer.output_len == 1
    scheduler.resume(slow.id)
    while scheduler.requests:
        run_round(scheduler)
    assert (slow.output_len, newcomer.output_len) == (40, 10)
    assert scheduler.verifier_kv.pool.num_free == 16


def test_paused_requests_count_as_waiting_and_can_be_aborted() -> None:
    scheduler = a_scheduler(max_waiting=1)
    paused = [add(scheduler) for _ in range(2)]
    for request in paused:
        scheduler.pause(request.id)
    with pytest.raises(Overloaded, match="2 requests are waiting, the limit is 2"):
        add(scheduler)
    assert scheduler.abort(paused[0].id) is not None
    add(scheduler)
    assert list(scheduler.room.paused) == [paused[1].id]
