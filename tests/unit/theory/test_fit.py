"""A fit finds what made the numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.theory.costs import Cost, Costs, tokens_per_round
from minedraft.theory.fit import Measured, fit_cost, fit_costs, rate_of
from minedraft.theory.modes import predict_mode
from minedraft.types import Mode

TRUE = Costs(
    draft=Cost(0.005, 0.0003),
    verify=Cost(0.009, 0.0006, free=8),
    verify_wide=Cost(0.006, 0.0003),
    turns_overhead=Cost(0.002, 0.0001),
    queued_overhead=Cost(0.0005),
    collision=0.3,
)


def measured(mode: Mode, num_in_flight: int, draft_len: int, noise: float = 0.0, seed: int = 0) -> Measured:
    made = predict_mode(TRUE, mode, num_in_flight, [0.5] * draft_len)
    draft_s, verify_s, step_s = (
        s * random.Random(f"{mode}{num_in_flight}{draft_len}{seed}{i}").uniform(1 - noise, 1 + noise)
        for i, s in enumerate((made.draft_s, made.verify_s, made.step_s))
    )
    return Measured(mode, num_in_flight / mode.num_batches, made.draft_len, draft_s, verify_s, step_s)


def rounds(noise: float) -> list[Measured]:
    loads = [(mode, n, k) for mode in (Mode.SD, Mode.MINEDRAFT) for n in (2, 4, 8, 16) for k in (1, 3)]
    return [measured(*load, noise) for load in [*loads, *((Mode.AR, n, 0) for n in (1, 4, 16))]]


def test_the_fit_of_exact_numbers_predicts_loads_that_were_not_measured() -> None:
    costs = fit_costs(rounds(0.0))
    for mode, n, k in ((Mode.SD, 12, 2), (Mode.MINEDRAFT, 12, 2), (Mode.MINEDRAFT, 24, 5), (Mode.AR, 9, 0)):
        want, got = (predict_mode(c, mode, n, [0.7] * k).tokens_per_s for c in (TRUE, costs))
        assert got == pytest.approx(want, rel=0.02), (mode, n, k)


def test_the_fit_of_noisy_numbers_is_about_right() -> None:
    costs = fit_costs(rounds(0.05))
    for mode, n, k in ((Mode.SD, 12, 2), (Mode.MINEDRAFT, 12, 2), (Mode.AR, 9, 0)):
        want, got = (predict_mode(c, mode, n, [0.7] * k).tokens_per_s for c in (TRUE, costs))
        assert got == pytest.approx(want, rel=0.1), (mode, n, k)


def test_a_fit_needs_neither_sd_nor_a_drafter() -> None:
    costs = fit_costs([measured(Mode.AR, n, 0) for n in (1, 4, 16)])
    assert costs.draft == Cost(0.0)
    assert predict_mode(costs, Mode.AR, 8).verify_s == pytest.approx(TRUE.verify_wide.at(8) if TRUE.verify_wide else 0)


@given(st.floats(1e-4, 1), st.floats(0, 0.1), st.sampled_from([0, 4, 8]))
def test_a_bent_line_is_found(base_s: float, slope_s: float, free: int) -> None:
    true = Cost(base_s, slope_s, free)
    found = fit_cost((size, true.at(size)) for size in (1, 2, 4, 8, 16, 32))
    for size in (1, 3, 6, 12, 24):
        assert found.at(size) == pytest.approx(true.at(size), rel=1e-3)


@given(st.floats(0.001, 0.999), st.integers(1, 16))
def test_a_rate_is_found_from_its_tokens(rate: float, draft_len: int) -> None:
    assert rate_of(tokens_per_round([rate] * draft_len), draft_len) == pytest.approx(rate, rel=1e-6)
