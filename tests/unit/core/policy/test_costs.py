"""Costs are learnt from measurements, whatever else is measured between them."""

from __future__ import annotations

import random

import pytest

from minedraft.core.policy.forecast.acceptance import AcceptanceRates, chain
from minedraft.core.policy.forecast.conditions import Condition
from minedraft.core.policy.forecast.cost_curve import CostCurve
from minedraft.core.policy.forecast.cost_model import CostModel
from minedraft.core.request import NewRequest, Request
from minedraft.sampling_params import SamplingParams


def test_a_curve_follows_a_floor_and_a_slope_between_and_beyond_what_was_measured() -> None:
    curve, rng = CostCurve(), random.Random(1)

    def true(rows: float) -> float:
        return 7.0 + max(rows - 4, 0) * 0.5

    for _ in range(40):
        for rows in (1, 4, 16, 64):
            curve.add(rows, true(rows) * rng.gauss(1, 0.05))
    for rows in (1, 2, 4, 8, 16, 32, 64, 128):
        assert curve.at(rows) == pytest.approx(true(rows), rel=0.12), rows
    assert curve.covers(32)
    assert not curve.covers(128)


def test_outliers_move_a_curve_little_and_a_lasting_change_moves_it_wholly() -> None:
    curve = CostCurve()
    for index in range(60):
        curve.add(8, 500.0 if index % 20 == 10 else 10.0)
    assert curve.at(8) < 11.5
    for _ in range(100):
        curve.add(8, 30.0)
    assert curve.at(8) == pytest.approx(30, rel=0.05)


@pytest.mark.parametrize("first", [60.0, 1e-6])
def test_a_first_measurement_that_was_disturbed_counts_little_after_two_more(first: float) -> None:
    curve = CostCurve()
    for seconds in (first, 10.0, 10.5):
        curve.add(8, seconds)
    assert curve.at(8) == pytest.approx(10.25, rel=0.05)


def test_more_never_costs_less() -> None:
    curve = CostCurve()
    for size, seconds in ((1, 5.0), (4, 4.0), (16, 6.0)):
        curve.add(size, seconds)
    costs = [curve.at(size) for size in range(1, 40)]
    assert costs == sorted(costs)


def test_acceptance_is_learnt_by_position() -> None:
    rates, rng = AcceptanceRates(), random.Random(2)
    true = [0.9, 0.6, 0.3, 0.3]
    for _ in range(2000):
        accepted = next((i for i, rate in enumerate(true) if rng.random() >= rate), 4)
        rates.add(4, accepted)
    assert rates.rates(4) == pytest.approx(true, abs=0.08)
    assert rates.rates(6)[5] == pytest.approx(rates.rates(6)[4]), "a position never tried is like the one before it"


def test_a_request_whose_drafts_are_accepted_more_often_than_others_is_told_from_them() -> None:
    rates, rng = AcceptanceRates(), random.Random(3)
    good, bad = (Request.create(number, NewRequest((1,), SamplingParams())) for number in (1, 2))
    for request, rate in [(good, 0.9), (bad, 0.3)] * 40:
        rates.look_at(request)
        accepted = next((i for i in range(3) if rng.random() >= rate), 3)
        request.num_rounds, request.num_drafted = request.num_rounds + 1, request.num_drafted + 3
        request.num_accepted += accepted
        rates.add(3, accepted)
    common = rates.rates(3)
    assert rates.survival(good.id, common)[0] > 0.65
    assert rates.survival(bad.id, common)[0] < 0.45
    rates.forget(good.id)
    assert rates.survival(good.id, common) == chain(common)


def test_rates_that_begin_anew_know_nothing() -> None:
    rates, new = AcceptanceRates(), AcceptanceRates()
    for _ in range(50):
        rates.add(3, 0)
    assert rates.rates(3)[0] < 0.1
    assert rates.doubt < new.doubt
    rates.begin_anew()
    assert (rates.rates(3), rates.doubt, rates.num_verified) == (new.rates(3), new.doubt, 0)


def test_a_shallower_draft_than_any_measured_is_taken_to_cost_its_part() -> None:
    """Two deep drafts that the noise has brought together say nothing of shallow ones, nor of deeper ones."""
    costs = CostModel()
    for depth, seconds in ((4, 0.140), (5, 0.142)):
        costs._learn_draft(Condition.ALONE, depth, 1.0, seconds)
    assert costs.draft_s(Condition.ALONE, 1, 1) == pytest.approx(0.035)
    assert costs.draft_s(Condition.ALONE, 8, 1) > 0.142 + 3 * 0.02


def test_rows_beyond_those_measured_are_not_dear_before_one_was_tried() -> None:
    """A prompt's tokens cost what computing takes; a few rows more than one are mostly read beside the weights."""
    costs = CostModel()
    for _ in range(4):
        costs._verify[Condition.WIDE].add(1, 0.100)
    costs._prompts.verified(Condition.WIDE, 10, 0.080, 0.0)  # 8 ms a token
    assert costs.verify_s(Condition.WIDE, 8) == pytest.approx(0.100 * (1 + 7 * 0.02))
    for _ in range(4):
        costs._verify[Condition.WIDE].add(8, 0.150)
    assert costs.verify_s(Condition.WIDE, 8) == pytest.approx(0.150)
