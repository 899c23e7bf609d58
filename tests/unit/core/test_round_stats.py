"""Overlap efficiency and overhead, computed from events made up by hand."""

from __future__ import annotations

import pytest

from minedraft.core import events
from minedraft.core.counters import Counters
from minedraft.core.policy.forecast.cost_model import CostModel, Way
from minedraft.core.round_stats import RoundStats
from minedraft.messages import Timing
from minedraft.types import Batch, Mode


def commit(stats: RoundStats, number: int, now_s: float, draft_s: float, verify: Timing, num_active: int) -> None:
    batch = Batch(number % 2)
    stats.observe(events.Drafted(batch, number, Timing(busy_ns=int(draft_s * 1e9)), is_prefill=False), now_s)
    stats.observe(events.Verified(batch, number, verify), now_s)
    stats.observe(events.RoundCommitted(batch, number, 4, 8, ((3, 2), (3, 1)), False, num_active), now_s)


def play(step_s: float, draft_s: float, verify_s: float, num_active: int = 2) -> RoundStats:
    stats = RoundStats()
    for i in range(21):
        verify = Timing(busy_ns=int(verify_s * 1e9), idle_ns=int(max(step_s - verify_s, 0) * 1e9))
        commit(stats, i, 100 + i * step_s, draft_s, verify, num_active)
    return stats


def test_a_verifier_that_never_waits_gives_full_overlap() -> None:
    summary = play(step_s=0.040, draft_s=0.030, verify_s=0.040).summary()
    assert summary.overlap_efficiency == pytest.approx(1.0)
    assert summary.verifier_busy == pytest.approx(1.0)
    assert summary.control_overhead_ms == pytest.approx(0.0, abs=1e-6)
    assert summary.num_rounds == 19, "the first of each batch followed nothing"


def test_taking_turns_shows_as_half_when_both_sides_cost_the_same() -> None:
    summary = play(step_s=0.080, draft_s=0.040, verify_s=0.040, num_active=1).summary()
    assert summary.overlap_efficiency == pytest.approx(0.5)
    assert summary.verifier_busy == pytest.approx(0.5)
    assert summary.step_ms == pytest.approx(80.0)


def test_acceptance_is_that_of_all_rounds() -> None:
    summary = play(step_s=0.040, draft_s=0.030, verify_s=0.040).summary()
    assert summary.vsr == pytest.approx(3 / 6)
    assert summary.mean_accepted_len == pytest.approx(3 / 2)


def test_the_tail_with_one_batch_is_left_out() -> None:
    stats = play(step_s=0.040, draft_s=0.030, verify_s=0.040)
    commit(stats, 22, 101.0, 0.03, Timing(busy_ns=40_000_000, idle_ns=30_000_000), 1)
    assert stats.summary().overlap_efficiency == pytest.approx(1.0)


def test_a_round_after_a_wait_for_work_shows_nothing_of_the_machinery() -> None:
    stats = play(step_s=0.040, draft_s=0.030, verify_s=0.040)
    stats.observe(events.LaneIdle(Batch.A), 105.0)
    commit(stats, 22, 109.0, 0.03, Timing(busy_ns=40_000_000, idle_ns=8_000_000_000), 2)
    assert stats.summary().step_ms == pytest.approx(40.0)
    assert stats.summary().verifier_busy == pytest.approx(1.0)


def test_times_of_a_round_that_came_to_nothing_are_not_those_of_the_next() -> None:
    stats = play(step_s=0.040, draft_s=0.030, verify_s=0.040)
    stats.observe(events.Drafted(Batch.A, 22, Timing(busy_ns=10**12), is_prefill=False), 101.0)
    stats.observe(events.RoundAbandoned(Batch.A, 22), 101.0)
    stats.observe(events.Verified(Batch.A, 24, Timing(busy_ns=40_000_000)), 101.0)
    stats.observe(events.RoundCommitted(Batch.A, 24, 4, 8, (), False, 2), 101.0)
    assert stats.samples[-1].draft_s == 0.0


def test_a_change_of_mode_begins_the_window_anew() -> None:
    stats = play(step_s=0.040, draft_s=0.030, verify_s=0.040)
    stats.observe(events.ModeChanged(Mode.SD, 4, 3, "test"), 105.0)
    assert stats.summary().num_rounds == 0
    for number in range(30, 33, 2):
        commit(stats, number, 105.0 + number, 0.03, Timing(busy_ns=40_000_000), 1)
    assert stats.summary().num_rounds == 1, "the step over the change is not measured"


def test_tokens_per_second_counts_the_window_only() -> None:
    stats = play(step_s=1.0, draft_s=0.1, verify_s=0.1)
    assert stats.tokens_per_s(now_s=120.0, window_s=10.0) == pytest.approx(8.0, rel=0.1)
    assert stats.tokens_per_s(now_s=500.0) == 0.0


def test_no_rounds_summarise_to_zeros() -> None:
    assert RoundStats().summary().step_ms == 0.0


def test_decoding_is_all_rounds_without_prompts_and_without_waits_over_any_change() -> None:
    stats = play(step_s=0.040, draft_s=0.030, verify_s=0.040)
    assert stats.decode_s == pytest.approx(19 * 0.040)
    assert stats.decode_tokens == 19 * 8, "the first round of each batch followed nothing"
    stats.observe(events.ModeChanged(Mode.SD, 4, 3, "test"), 105.0)
    commit(stats, 30, 106.0, 0.03, Timing(busy_ns=40_000_000), 1)
    commit(stats, 32, 106.5, 0.03, Timing(busy_ns=40_000_000), 1)
    stats.observe(events.RoundCommitted(Batch.A, 34, 4, 8, (), is_prefill=True, num_active=1), 107.5)
    assert stats.decode_s == pytest.approx(19 * 0.040 + 0.5)
    assert stats.decode_tokens == 20 * 8


def test_the_times_of_a_round_of_several_decode_steps_are_those_of_each_step() -> None:
    stats, counters, costs = RoundStats(), Counters(), CostModel()
    for number in range(20):
        now_s = 100 + number * 0.040
        for event in (
            events.RoundPlanned(Batch.A, number, 2, 0, 0),
            events.Verified(Batch.A, number, Timing(busy_ns=36_000_000, idle_ns=4_000_000), num_steps=4),
            events.RoundCommitted(Batch.A, number, 2, 8, (), False, 1),
        ):
            for observe in (stats.observe, counters.observe, costs.observe):
                observe(event, now_s)
    summary = stats.summary()
    assert (summary.step_ms, summary.verify_ms) == pytest.approx((10.0, 9.0))
    assert (summary.control_overhead_ms, summary.verifier_busy) == pytest.approx((1.0, 0.9))
    assert stats.tokens_per_s(now_s, 0.41) == pytest.approx(200.0)
    assert stats.decode_tokens / stats.decode_s == pytest.approx(200.0)
    assert (counters.rounds[Batch.A], counters.further_steps) == (20, 60)
    assert costs.period_s(Way(Mode.AR), 2, 0.0, 0) == pytest.approx(0.010, rel=0.05)
