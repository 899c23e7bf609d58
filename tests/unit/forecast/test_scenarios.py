"""Services at their limits, with small numbers: what each scenario is to show, and that it shows the same twice."""

from __future__ import annotations

import json

import pytest

from minedraft.types import Mode
from scripts.lib.forecast.capacity import outcome_json
from scripts.lib.forecast.scenarios import crowd, dying_drafter, large_pair, slow_link, small_pair


def test_ten_thousand_that_wait_behind_a_thousand_are_all_answered_in_turn() -> None:
    (outcome,) = crowd(small_pair(), 1000, 10_000, (2, 2), [Mode.MINEDRAFT])
    run = outcome.run
    assert (run.num_tokens, run.num_failed, run.num_refused) == (22_000, 0, 0)
    assert run.queue.p50 < run.queue.p90 < run.queue.p99 < run.seconds
    assert run.queue.p50 == pytest.approx(run.seconds / 2, rel=0.2), "as many before the median as after it"
    assert 0 < outcome.kv_share < 0.1


def test_a_bounded_queue_refuses_the_rest_at_once() -> None:
    (outcome,) = crowd(small_pair(), 20, 200, (8, 8), [Mode.SD], max_waiting=50)
    assert outcome.run.num_refused == 200 - 50
    assert outcome.run.num_failed == 0


def test_a_crowd_that_does_not_fit_in_memory_waits_and_is_answered() -> None:
    (outcome,) = crowd(large_pair(), 400, 0, (4096, 4), [Mode.SD])
    assert outcome.run.num_failed == 0
    assert 0.9 < outcome.kv_share <= 1.0


def test_a_link_is_hidden_until_half_a_batch_of_round_trips_takes_longer_than_the_verifies() -> None:
    outcomes = list(slow_link(large_pair(), (0.1, 2.0, 40.0), num_in_flight=8, output_len=64))
    step_ms = {(o.mode, o.what): o.run.rounds.step_ms for o in outcomes}
    rates = {(o.mode, o.what): o.run.tokens_per_s for o in outcomes}
    near, middle, far = (f"{ms} ms away" for ms in ("0.1", "2", "40"))
    assert step_ms[Mode.SD, middle] == pytest.approx(step_ms[Mode.SD, near] + 2 * 1.9, rel=0.02)
    # Overlapped, half of the way is hidden at once, and of the rest what the longer lane has to spare.
    lost_s = step_ms[Mode.MINEDRAFT, middle] - step_ms[Mode.MINEDRAFT, near]
    assert lost_s < 1.9
    assert rates[Mode.MINEDRAFT, middle] > 0.93 * rates[Mode.MINEDRAFT, near]
    assert rates[Mode.MINEDRAFT, far] > rates[Mode.SD, far], "two batches on the way instead of one"
    assert rates[Mode.MINEDRAFT, far] < 0.5 * rates[Mode.MINEDRAFT, near]


def test_a_drafter_that_dies_costs_only_the_time_without_it() -> None:
    lives, dies, none = dying_drafter(large_pair(), 2.0, 0.5, 120, num_in_flight=8, output_len=64)
    assert lives.run.num_tokens == dies.run.num_tokens == none.run.num_tokens == 120 * 64
    assert lives.run.num_failed == dies.run.num_failed == 0
    assert dies.run.seconds > 4.0, "it died twice at least"
    # Each death costs the time away, a draft under way, and the caching of all contexts by the next drafter.
    num_deaths = int(dies.run.seconds / 2.5)
    without = none.run.tokens_per_s / lives.run.tokens_per_s
    assert 0 < dies.run.seconds - lives.run.seconds < num_deaths * (0.5 * max(2 - without, 1.0) + 0.2)


def test_the_same_scenario_gives_the_same_file() -> None:
    first, second = (
        json.dumps([outcome_json(o) for o in dying_drafter(small_pair(), 0.5, 0.2, 40, num_in_flight=8, output_len=32)])
        for _ in range(2)
    )
    assert first == second
