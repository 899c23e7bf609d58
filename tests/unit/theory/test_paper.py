"""The paper's theorem put right, against a search by brute force over the drafting time."""

from __future__ import annotations

from math import exp

import pytest

from minedraft.theory.paper import PAPER_RATIO, best_turns, best_v, ratio, ratio_range, saving

# v = alpha V -> ratio, as tabulated by hand
TABLE = {0.1: 1.44, 0.3: 1.72, 0.5: 1.86, 1: 1.99, 1.678: 1.98, 2.23: 1.92, 3: 1.82, 5: 1.61, 8: 1.43, 12: 1.31}


@pytest.mark.parametrize("v", TABLE)
def test_the_ratio_is_that_of_the_best_drafting_times(v: float) -> None:
    grid = [i / 2000 * max(v, 1.0) for i in range(1, 20001)]  # alpha t; the unit of time is 1 / alpha
    in_turns = min((x + v) / (1 - exp(-x)) for x in grid)
    overlapped = min(max(x, v) / (1 - exp(-x)) for x in [*grid, v])
    assert ratio(v) == pytest.approx(in_turns / overlapped, rel=1e-5)
    assert round(ratio(v), 2) == TABLE[v]
    assert exp(best_turns(v)) == pytest.approx(1 + v + best_turns(v))


def test_overlapping_saves_at_most_half_and_that_at_one_point() -> None:
    assert best_v() == pytest.approx(1.2564, abs=1e-4)
    assert saving(best_v()) == pytest.approx(0.5, abs=1e-9)
    others = [v / 100 for v in range(1, 3000) if abs(v / 100 - best_v()) > 0.01]
    assert max(map(ratio, others)) < 2


def test_the_promised_ratio_holds_in_a_range_and_nowhere_else() -> None:
    low, high = ratio_range()
    assert (round(low, 3), round(high, 2)) == (0.188, 5.21)
    for v in [0.01 * i for i in range(1, 2000)]:
        assert (ratio(v) >= PAPER_RATIO) is (low <= v <= high), v
    assert ratio_range(1.61) == pytest.approx((0.203, 4.97), abs=5e-3)


def test_the_ratio_goes_to_one_at_both_ends() -> None:
    """So no bound holds for all v above some constant, as the published theorem has it."""
    assert ratio(1e-6) < 1.01
    assert ratio(1e5) < 1.01
