"""The conditions for overlapping to win against the times of both ways, and the points from which on they hold."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.theory.costs import Cost, Costs
from minedraft.theory.modes import overlap_gain
from minedraft.theory.winning import least_context, least_drafting, least_in_flight, unsaved, wins_overlapped

# Milliseconds, as whole numbers: differences are exact, or large.
times = st.integers(1, 400).map(float)
slopes = st.integers(0, 40).map(float)
free = st.sampled_from([0.0, 4.0, 16.0])
kv = st.sampled_from([0.0, 0.001, 0.01])
linear = st.builds(Costs, st.builds(Cost, times, slopes), st.builds(Cost, times, slopes))
NEVER = Costs(Cost(5.0), Cost(40.0))  # nothing grows


@given(
    st.builds(Costs, st.builds(Cost, times, slopes, free), st.builds(Cost, times, slopes, free), draft_kv_s=kv,
              verify_kv_s=kv, turns_overhead=st.builds(Cost, slopes, slopes)),
    st.integers(1, 32).map(lambda half: 2 * half), st.integers(1, 8), st.sampled_from([0, 100, 3000]),
)  # fmt: skip
def test_the_conditions_are_those_of_the_two_times(costs: Costs, n: int, k: int, context_len: int) -> None:
    gain = overlap_gain(costs, n, k, context_len)
    if abs(gain - 1) > 1e-9:
        assert wins_overlapped(costs, n, k, context_len) is (gain > 1)


@given(times, times, st.integers(0, 50), st.integers(2, 64), st.integers(1, 8))
def test_nothing_wins_where_nothing_grows(draft_s: float, verify_s: float, away_s: int, n: int, k: int) -> None:
    costs = Costs(Cost(draft_s), Cost(verify_s), turns_overhead=Cost(float(away_s)))
    assert not wins_overlapped(costs, n, k)
    assert overlap_gain(costs, n, k) <= 1


def test_what_halving_loses_is_the_fixed_part_or_what_is_free() -> None:
    assert unsaved(Cost(7.0, 0.5), 12) == 7.0
    # Four of twelve rows are free, and four of each half's six: twice 7 + 1, less 7 + 4.
    assert unsaved(Cost(7.0, 0.5, free=4), 12) == 5.0
    assert unsaved(Cost(7.0, 0.5, free=16), 12) == 7.0


@given(linear, st.integers(1, 8))
def test_from_so_many_requests_on_drafting_hides_the_verify(costs: Costs, k: int) -> None:
    """A verify that is bound by computing: beside the drafting, its fixed part is what halving loses."""
    least = least_in_flight(costs, k)
    for n in (least * 1.01 + 0.01, least * 0.99):
        if not 0 < n < inf or costs.verify_s(n / 2, k) < costs.draft_s(n / 2, k):
            continue
        if costs.draft.slope_s or costs.verify.slope_s:
            assert wins_overlapped(costs, n, k) is (n > least)
    assert least_in_flight(NEVER, 5) == inf


def test_a_verify_bound_by_computing_wins_from_the_start() -> None:
    """k = 5: drafting takes 25 ms, the fixed part of the verify 10: any number of requests is enough."""
    bound = Costs(Cost(5.0, 0.05), Cost(10.0, 0.25))
    assert least_in_flight(bound, 5) == 0.0
    assert all(wins_overlapped(bound, n, 5) for n in (16, 32, 64))
    memory_bound = Costs(Cost(5.0, 0.05), Cost(40.0, 0.25))
    assert least_in_flight(memory_bound, 5) == pytest.approx((40 - 25) / (5 * 0.05))
    assert [wins_overlapped(memory_bound, n, 5) for n in (58, 62)] == [False, True]


def test_a_long_context_wins_if_the_drafter_reads_its_own_keys_and_values() -> None:
    costs = Costs(Cost(5.0), Cost(40.0), draft_kv_s=1e-4, verify_kv_s=1e-3)
    least = least_context(costs, 16, 3)
    assert least == pytest.approx((40 - 15) / (3 * 16 * 1e-4))
    assert [wins_overlapped(costs, 16, 3, length) for length in (0.99 * least, 1.01 * least)] == [False, True]
    gains = [overlap_gain(costs, 16, 3, length) for length in (0, 1000, 4000, 16000, 64000)]
    assert gains == sorted(gains), "the longer, the more of the time is shared by the halves"
    # Both bound by keys and values: halves take half as long, and the shorter of the two is hidden whole.
    assert overlap_gain(costs, 16, 3, 1e8) == pytest.approx((1e-3 + 3e-4) / 1e-3, rel=1e-3)
    assert least_context(replace(costs, draft_kv_s=0.0), 16, 3) == inf


def test_a_slow_drafter_or_a_remote_one_wins_where_a_fast_one_does_not() -> None:
    near = Costs(Cost(2.0), Cost(30.0, 0.2))
    n, k = 16, 3
    need_s = least_drafting(near, n, k)
    assert need_s == 30.0
    assert not wins_overlapped(near, n, k)
    slow = replace(near, draft=Cost(need_s / k + 0.1))
    far = replace(near, turns_overhead=Cost(need_s - k * 2.0 + 0.3))
    for costs in (slow, far):
        assert wins_overlapped(costs, n, k)
        assert overlap_gain(costs, n, k) > 1
    assert not wins_overlapped(replace(near, turns_overhead=Cost(need_s - k * 2.0 - 0.3)), n, k)
