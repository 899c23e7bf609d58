"""When to change: what is lost by staying pays for the change, and noise changes nothing."""

from __future__ import annotations

import random

import pytest

from minedraft.core.policy.steady import Steady
from minedraft.types import Mode

MODES = (Mode.AR, Mode.SD, Mode.MINEDRAFT)


def look(
    steady: Steady,
    present: Mode,
    rates: dict[Mode, float],
    num_in_flight: int = 4,
    *,
    cost_s: float = 0.0,
    round_s: float = 0.2,
) -> Mode | None:
    """Look after each round."""
    return steady.pick(present, rates, num_in_flight, lambda mode: cost_s, round_s, round_s)


def rounds_until_change(steady: Steady, present: Mode, rates: dict[Mode, float], **how: float) -> int:
    return next(n for n in range(1, 1000) if look(steady, present, rates, **how) is not None)  # type: ignore[arg-type]


@pytest.mark.parametrize("round_s", [0.03, 0.2, 1.0])
def test_the_better_a_mode_is_the_sooner_it_is_taken_and_no_more_than_some_rounds_are_lost(round_s: float) -> None:
    numbers = []
    for percent in (5, 10, 25, 100, 300):
        rates = {Mode.AR: 100.0, Mode.SD: 100.0 + percent}
        number = rounds_until_change(Steady(), Mode.AR, rates, round_s=round_s)
        assert number * percent / (100 + percent) < 6, "rounds lost"
        numbers.append(number)
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] <= 5


def test_a_mode_that_is_little_better_is_not_taken() -> None:
    steady = Steady()
    assert all(look(steady, Mode.AR, {Mode.AR: 100.0, Mode.SD: 101.5}) is None for _ in range(2000))


def test_a_change_that_costs_seconds_waits_for_them_and_one_that_does_not_repay_is_never_made() -> None:
    better = {Mode.AR: 100.0, Mode.SD: 120.0}
    soon = rounds_until_change(Steady(), Mode.AR, better)
    assert soon < rounds_until_change(Steady(), Mode.AR, better, cost_s=0.5)
    steady = Steady()
    assert all(look(steady, Mode.AR, better, cost_s=10.0) is None for _ in range(2000))


def test_what_was_lost_at_another_load_does_not_change_a_mode_that_is_best_now() -> None:
    steady = Steady()
    while look(steady, Mode.AR, {Mode.AR: 100.0, Mode.SD: 150.0}, 16) is None:
        pass
    steady = Steady()
    for _ in range(8):
        assert look(steady, Mode.AR, {Mode.AR: 100.0, Mode.SD: 150.0}, 16) is None
    assert look(steady, Mode.AR, {Mode.AR: 150.0, Mode.SD: 100.0}, 1) is None


def test_changes_that_follow_one_another_become_dearer_unless_the_load_is_another_one() -> None:
    steady, present, numbers = Steady(), Mode.AR, []
    for _ in range(4):
        other = Mode.SD if present is Mode.AR else Mode.AR
        numbers.append(rounds_until_change(steady, present, {present: 100.0, other: 150.0}))
        steady.changed(4)
        present = other
    assert numbers[1] < numbers[2] < numbers[3]
    other = Mode.SD if present is Mode.AR else Mode.AR
    rates = {present: 100.0, other: 150.0}
    assert rounds_until_change(steady, present, rates, num_in_flight=16) == numbers[0]


@pytest.mark.parametrize("memory", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_a_noisy_forecast_of_equal_modes_changes_nothing_for_long(memory: float, seed: int) -> None:
    """The noise of a forecast that averages lasts for many looks: `memory` of it from one to the next."""
    steady, rng, present, changes = Steady(), random.Random(seed), Mode.SD, 0
    errors = dict.fromkeys(MODES, 0.0)
    for _ in range(4000):
        for mode in MODES:
            errors[mode] = memory * errors[mode] + (1 - memory**2) ** 0.5 * rng.gauss(0, 0.04)
        rates = {mode: 100 * (1 + errors[mode]) for mode in MODES}
        if (mode := look(steady, present, rates, 8)) is not None:
            present, changes = mode, changes + 1
            steady.changed(8)
    assert changes <= (0 if not memory else 20)


@pytest.mark.parametrize("seed", range(20))
def test_never_is_more_lost_by_changes_than_by_staying(seed: int) -> None:
    """Whatever the rates do: between two changes, staying had cost the price of at least the three rounds."""
    steady, rng, present, lost_s = Steady(), random.Random(seed), Mode.SD, 0.0
    rates = dict.fromkeys(MODES, 100.0)
    for _ in range(2000):
        if rng.random() < 0.05:
            rates[rng.choice(MODES)] = rng.uniform(50, 200)
        lost_s += 0.2 * (1 - rates[present] / max(rates.values()))
        mode = look(steady, present, rates, rng.choice((1, 8)))
        if mode is not None:
            assert rates[mode] > rates[present]
            assert lost_s >= 0.6 - 1e-9
            steady.changed(8)
            present, lost_s = mode, 0.0
