"""The formulas against numbers worked out by hand, enumeration, and a run of the two lanes event by event."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.theory.costs import Cost, Costs, accepted_lens, tokens_per_round
from minedraft.theory.modes import best_draft_len, overlap_bound, overlap_gain, predict_mode, same_batch_gain
from minedraft.types import Mode

times = st.floats(1e-4, 1.0)
slopes = st.floats(0.0, 0.1)
FLAT = Costs(draft=Cost(5.0), verify=Cost(40.0))
COMPUTE_BOUND = Costs(draft=Cost(5.0, 0.05), verify=Cost(10.0, 1.5 / 6))  # k = 5: six rows a request


@given(st.lists(st.floats(0, 1), max_size=6))
def test_tokens_per_round_is_the_mean_over_all_ways_that_a_verify_can_end(rates: list[float]) -> None:
    mean = 0.0
    for accepted in product((True, False), repeat=len(rates)):
        chance = prod(rate if ok else 1 - rate for rate, ok in zip(rates, accepted, strict=True))
        num_tokens = next((i for i, ok in enumerate(accepted) if not ok), len(rates)) + 1
        mean += chance * num_tokens
    assert tokens_per_round(rates) == pytest.approx(mean)
    lens = accepted_lens(rates)
    assert sum(lens) == pytest.approx(1)
    assert sum(chance * (length + 1) for length, chance in enumerate(lens)) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("costs", "same_batch", "in_flight"), [(FLAT, 65 / 40, 65 / 80), (COMPUTE_BOUND, 1.853, 1.338)]
)
def test_the_examples_worked_out_by_hand(costs: Costs, same_batch: float, in_flight: float) -> None:
    assert same_batch_gain(costs, 16, 5) == pytest.approx(same_batch, abs=5e-4)
    assert overlap_gain(costs, 32, 5) == pytest.approx(in_flight, abs=5e-4)


@given(times, slopes, times, slopes, st.integers(1, 8), st.integers(1, 64))
def test_at_equal_batch_overlapping_gains_at_most_two(
    draft_s: float, draft_slope: float, verify_s: float, verify_slope: float, k: int, m: int
) -> None:
    costs = Costs(Cost(draft_s, draft_slope), Cost(verify_s, verify_slope))
    gain = same_batch_gain(costs, m, k)
    assert 1 - 1e-9 <= gain <= 2 + 1e-9
    assert gain == pytest.approx(overlap_bound(costs.draft_s(m, k), costs.verify_s(m, k)))


@given(times, times, st.integers(1, 8), st.integers(2, 64))
def test_at_equal_in_flight_flat_forwards_never_gain(draft_s: float, verify_s: float, k: int, n: int) -> None:
    assert overlap_gain(Costs(Cost(draft_s), Cost(verify_s)), n, k) <= 1 + 1e-9


@given(times, slopes, times, slopes, st.integers(1, 8), st.integers(2, 64))
def test_a_verify_that_dominates_gains_if_and_only_if_its_fixed_part_is_below_the_drafting(
    draft_s: float, draft_slope: float, verify_s: float, verify_slope: float, k: int, n: int
) -> None:
    costs = Costs(Cost(draft_s, draft_slope), Cost(verify_s, verify_slope))
    if costs.verify_s(n / 2, k) < costs.draft_s(n / 2, k):
        return
    margin = costs.draft_s(n, k) - verify_s  # V0 < k (d0 + d1 n)
    if abs(margin) > 1e-9:
        assert (overlap_gain(costs, n, k) > 1) is (margin > 0)


@given(times, times, st.floats(0.0, 0.01), st.floats(0.0, 0.3), st.floats(0.0, 1.0))
def test_the_period_is_that_of_two_batches_that_take_turns_on_two_devices(
    draft_s: float, verify_s: float, queued_s: float, message_s: float, collision: float
) -> None:
    costs = Costs(
        Cost(draft_s),
        Cost(verify_s),
        turns_overhead=Cost(2 * message_s),
        queued_overhead=Cost(queued_s),
        collision=collision,
    )
    taken_s = dict(zip(("drafter", "verifier"), costs.overlapped(1, 1), strict=True))
    # Event by event: a batch is drafted when its verify has ended and the drafter is free, and the other way round.
    free_s = {"drafter": 0.0, "verifier": 0.0}
    ready_s, ends = [0.0, 0.0], []
    for step in range(400):
        batch = step % 2
        for worker, seconds in taken_s.items():
            end_s = max(free_s[worker], ready_s[batch]) + seconds
            free_s[worker], ready_s[batch] = end_s + queued_s, end_s + message_s
        ends.append(free_s["verifier"])
    period_s = (ends[-1] - ends[199]) / 100
    prediction = predict_mode(costs, Mode.MINEDRAFT, 2, [0.5])
    assert period_s == pytest.approx(prediction.period_s, rel=1e-6)
    assert prediction.step_s == pytest.approx(prediction.period_s / 2)
    assert max(prediction.verifier_busy, prediction.drafter_busy) <= 1 + 1e-9


@given(times, times, st.floats(0.0, 1.0))
def test_forwards_that_begin_together_slow_each_other_down_as_long_as_both_run(
    draft_s: float, verify_s: float, collision: float
) -> None:
    """A clock in small steps, in each of which a forward gets as much done as the other one lets it."""
    both = Costs(Cost(draft_s), Cost(verify_s), collision=collision).overlapped(1, 1)
    left, ends, now_s, tick_s = [draft_s, verify_s], [0.0, 0.0], 0.0, (draft_s + verify_s) / 4000
    while max(left) > 0:
        speed = 1 / (1 + collision) if min(left) > 0 else 1.0
        now_s += tick_s
        for index in (0, 1):
            if left[index] > 0:
                left[index] -= speed * tick_s
                ends[index] = now_s
    assert ends == pytest.approx(both, abs=3 * tick_s)


def test_who_does_not_read_does_not_collide() -> None:
    costs = Costs(Cost(4.0), Cost(10.0, 1.0, free=2), collision=0.4)
    assert costs.slowdown(1, 1) == pytest.approx(1.4)
    assert costs.slowdown(6, 1) == pytest.approx(1 + 0.4 * 10 / 20), "half of the verify computes"
    assert costs.slowdown(6, 0) == 1.0


def test_caches_that_are_read_cost_time_in_every_mode() -> None:
    costs = Costs(Cost(1.0), Cost(10.0), draft_kv_s=1e-3, verify_kv_s=1e-2)
    assert predict_mode(costs, Mode.AR, 4, context_len=100).period_s == pytest.approx(10 + 4)
    assert predict_mode(costs, Mode.SD, 4, [0.5] * 2, context_len=100).period_s == pytest.approx(14 + 2 * 1.4)
    assert predict_mode(costs, Mode.MINEDRAFT, 4, [0.5] * 2, context_len=100).period_s == pytest.approx(24)


def test_pearl_drafts_for_nothing_where_it_guessed_right() -> None:
    costs = Costs(Cost(3.0), Cost(10.0))
    assert predict_mode(costs, Mode.PEARL, 1, [1.0, 1.0]).period_s == 10.0
    assert predict_mode(costs, Mode.PEARL, 1, [0.0, 0.0]).period_s == 16.0
    assert predict_mode(costs, Mode.PEARL, 1, [0.5, 0.5]).period_s == pytest.approx(10 + (1 - 0.125) * 6)
    assert predict_mode(costs, Mode.PEARL, 1, [0.5, 0.5], hit_rate=0.5).period_s == pytest.approx(13)


def test_ar_has_no_drafts_and_may_have_both_cores() -> None:
    costs = Costs(Cost(3.0), Cost(8.0, 1.0, free=4), Cost(5.0))
    assert predict_mode(costs, Mode.AR, 10, [0.9]).tokens_per_s == pytest.approx(2.0)
    assert predict_mode(Costs(costs.draft, costs.verify), Mode.AR, 10).period_s == pytest.approx(14.0)


def test_the_best_number_of_drafts_is_the_best_of_all() -> None:
    costs = Costs(Cost(1.0), Cost(10.0, 0.1))
    for mode in (Mode.SD, Mode.MINEDRAFT):
        all_lens = [predict_mode(costs, mode, 4, [0.8] * k).tokens_per_s for k in range(1, 17)]
        best = best_draft_len(costs, mode, 4, [0.8] * 16)
        assert best.tokens_per_s == max(all_lens)
        assert 1 < best.draft_len < 16
        assert best.bound == {Mode.SD: "both in turn", Mode.MINEDRAFT: "verifying"}[mode]
