"""ModeTrials of modes: taken from a budget of seconds, and ended as soon as they have shown enough."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from minedraft.core.policy.mode_trials import ModeTrials
from minedraft.types import Mode


def pick(
    trials: ModeTrials,
    rates: dict[Mode, float],
    hopes: dict[Mode, float],
    now_s: float = 0.0,
    round_s: float = 0.2,
    num_in_flight: int = 4,
) -> Mode | None:
    """Have looked at this load for some time."""
    for _ in range(4):
        trials.ran(Mode.SD, num_in_flight, now_s)
    return trials.pick(Mode.SD, rates, hopes, num_in_flight, now_s, lambda mode: round_s, lambda mode: 0.0)


def test_only_a_mode_that_may_be_clearly_better_is_tried_and_the_most_promising_first() -> None:
    rates = {Mode.SD: 100.0, Mode.AR: 90.0, Mode.MINEDRAFT: 95.0}
    trials = ModeTrials()
    trials.worked(0.2, 0.2)
    assert pick(trials, rates, {**rates, Mode.AR: 104.0, Mode.MINEDRAFT: 103.0}) is None
    assert pick(trials, rates, {**rates, Mode.AR: 130.0, Mode.MINEDRAFT: 110.0}) is Mode.AR
    assert trials.home is Mode.SD


def test_a_mode_that_ran_about_so_many_requests_lately_is_not_tried() -> None:
    trials, rates, hopes = ModeTrials(), {Mode.SD: 100.0, Mode.AR: 90.0}, {Mode.SD: 100.0, Mode.AR: 130.0}
    trials.worked(0.2, 0.2)
    trials.ran(Mode.AR, 4, 3.0)
    trials.ran(Mode.AR, 16, 12.0)
    assert pick(trials, rates, hopes, 8.0) is None
    assert pick(trials, rates, hopes, 20.0, num_in_flight=16) is None
    assert pick(trials, rates, hopes, 20.0) is Mode.AR, "with four requests it has not run since"


def test_a_trial_that_costs_more_than_it_may_gain_or_than_there_is_credit_for_is_not_made() -> None:
    trials, rates = ModeTrials(), {Mode.SD: 100.0, Mode.AR: 20.0}
    trials.worked(0.2, 0.2)
    assert pick(trials, rates, {Mode.SD: 100.0, Mode.AR: 200.0}) is None, "four rounds at a fifth of the rate"
    trials.worked(60.0, 0.2)
    assert pick(trials, rates, {Mode.SD: 100.0, Mode.AR: 106.0}) is None
    assert pick(trials, rates, {Mode.SD: 100.0, Mode.AR: 200.0}) is Mode.AR


@pytest.mark.parametrize("round_s", [0.01, 0.2, 1.0])
def test_trials_lose_a_share_of_the_time_whatever_a_round_takes(round_s: float) -> None:
    trials, rates, hopes = ModeTrials(), {Mode.SD: 100.0, Mode.AR: 70.0}, {Mode.SD: 100.0, Mode.AR: 200.0}
    now_s = lost_s = 0.0
    while now_s < 3000:
        trials.worked(round_s, round_s)
        now_s += round_s
        if trials.home is not None:
            trials.committed(False)
            lost_s += 0.3 * round_s
            if trials.result(Mode.AR, rates) is not None:
                trials.ran(Mode.AR, 4, now_s)
        else:
            pick(trials, rates, hopes, now_s, round_s)
    assert 0 < lost_s < 0.01 * now_s + 3 * round_s + 0.3


def rounds_of_trial(home_rate: float, tried_rate: float, noise: float = 0.0, seed: int = 1) -> tuple[int, Mode]:
    """Return how many rounds a trial takes, and what has won."""
    trials, rng, total = ModeTrials(), random.Random(seed), 0.0
    trials.worked(10.0, 0.2)
    assert pick(trials, {Mode.SD: home_rate, Mode.AR: home_rate}, {Mode.AR: 2 * home_rate}) is Mode.AR
    for number in range(1, 100):
        trials.worked(0.2, 0.2)
        trials.committed(False)
        total += rng.gauss(1, noise)
        rates = {Mode.SD: home_rate, Mode.AR: tried_rate * total / number}
        if (winner := trials.result(Mode.AR, rates)) is not None:
            return number, winner
    raise AssertionError("it never ends")


def test_a_trial_ends_the_sooner_the_clearer_it_is() -> None:
    assert rounds_of_trial(100, 60) == (2, Mode.SD)
    assert rounds_of_trial(100, 98) == (8, Mode.SD)
    assert rounds_of_trial(100, 130) == (4, Mode.AR)


def test_a_noisy_trial_seldom_errs_where_it_matters() -> None:
    wrong = sum(rounds_of_trial(100, 112, 0.08, seed)[1] is Mode.SD for seed in range(200))
    wrong += sum(rounds_of_trial(100, 88, 0.08, seed)[1] is Mode.AR for seed in range(200))
    assert wrong < 20


def test_a_trial_in_which_nothing_is_measured_ends_where_it_began() -> None:
    trials = ModeTrials()
    trials.worked(10.0, 0.2)
    assert pick(trials, {Mode.SD: 100.0, Mode.AR: 100.0}, {Mode.AR: 200.0}) is Mode.AR
    for _ in range(15):
        trials.worked(0.2, 0.2)
        trials.committed(True)
        assert trials.result(Mode.AR, {Mode.SD: 100.0, Mode.AR: 120.0}) is None
    trials.worked(0.3, 0.2)
    assert trials.result(Mode.AR, {Mode.SD: 100.0, Mode.AR: 120.0}) is Mode.SD
    assert trials.home is None


def test_a_load_that_has_just_come_is_none_to_try_modes_at() -> None:
    trials, rates, hopes = ModeTrials(), {Mode.SD: 100.0, Mode.AR: 90.0}, {Mode.AR: 150.0}
    trials.worked(0.2, 0.2)

    def picked() -> Mode | None:
        trials.ran(Mode.SD, 8, 1.0)
        return trials.pick(Mode.SD, rates, hopes, 8, 1.0, lambda mode: 0.2, lambda mode: 0.0)

    assert [picked() for _ in range(4)] == [None, None, None, Mode.AR]


def test_a_mode_that_loses_its_trials_is_tried_more_and_more_seldom() -> None:
    trials, rates, hopes = ModeTrials(), {Mode.SD: 100.0, Mode.AR: 90.0}, {Mode.SD: 100.0, Mode.AR: 150.0}
    now_s, begun = 0.0, []
    while now_s < 400:
        trials.worked(0.2, 0.2)
        now_s += 0.2
        if trials.home is None:
            if pick(trials, rates, hopes, now_s) is not None:
                begun.append(now_s)
        else:
            trials.committed(False)
            trials.ran(Mode.AR, 4, now_s)
            trials.result(Mode.AR, rates)
    gaps = [after - before for before, after in pairwise(begun)]
    assert 14 < gaps[0] < 40
    assert gaps == sorted(gaps)
    assert gaps[-1] > 3 * gaps[0]
