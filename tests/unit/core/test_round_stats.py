"""Overlap efficiency and overhead, computed from rounds made up by hand."""

from __future__ import annotations

import pytest

from minedraft.core.round_stats import RoundStats
from minedraft.types import Batch, Timing


def play(step_s: float, draft_s: float, verify_s: float, num_active: int = 2) -> RoundStats:
    stats = RoundStats()
    for i in range(21):
        stats.record(
            Batch(i % 2),
            Timing(busy_ns=int(draft_s * 1e9)),
            Timing(busy_ns=int(verify_s * 1e9), idle_ns=int(max(step_s - verify_s, 0) * 1e9)),
            now_s=100 + i * step_s,
            num_requests=4,
            num_output_tokens=8,
            num_active=num_active,
            is_steady=i > 0,
            is_prefill=False,
        )
    return stats


def test_a_verifier_that_never_waits_gives_full_overlap() -> None:
    summary = play(step_s=0.040, draft_s=0.030, verify_s=0.040).summary()
    assert summary.overlap_efficiency == pytest.approx(1.0)
    assert summary.verifier_busy == pytest.approx(1.0)
    assert summary.control_overhead_ms == pytest.approx(0.0, abs=1e-6)
    assert summary.num_rounds == 20


def test_taking_turns_shows_as_half_when_both_sides_cost_the_same() -> None:
    summary = play(step_s=0.080, draft_s=0.040, verify_s=0.040, num_active=1).summary()
    assert summary.overlap_efficiency == pytest.approx(0.5)
    assert summary.verifier_busy == pytest.approx(0.5)
    assert summary.step_ms == pytest.approx(80.0)


def test_the_tail_with_one_batch_is_left_out() -> None:
    stats = play(step_s=0.040, draft_s=0.030, verify_s=0.040)
    stats.record(
        Batch.A,
        Timing(busy_ns=30_000_000),
        Timing(busy_ns=40_000_000, idle_ns=30_000_000),
        now_s=101.0,
        num_requests=1,
        num_output_tokens=1,
        num_active=1,
        is_steady=True,
        is_prefill=False,
    )
    assert stats.summary().overlap_efficiency == pytest.approx(1.0)


def test_tokens_per_second_counts_the_window_only() -> None:
    stats = play(step_s=1.0, draft_s=0.1, verify_s=0.1)
    assert stats.tokens_per_s(now_s=120.0, window_s=10.0) == pytest.approx(8.0, rel=0.1)
    assert stats.tokens_per_s(now_s=500.0) == 0.0


def test_no_rounds_summarise_to_zeros() -> None:
    assert RoundStats().summary().step_ms == 0.0
