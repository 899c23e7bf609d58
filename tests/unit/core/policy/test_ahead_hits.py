"""How often prepared branches come true is learnt from those that did, and told from acceptance before."""

from __future__ import annotations

import random

import pytest

from minedraft.core.policy.forecast.ahead_hits import AheadHits


def test_before_any_run_it_goes_by_the_acceptance_of_drafts() -> None:
    low, high = AheadHits(), AheadHits()
    for _ in range(200):
        low.judge(2, 0)
        high.judge(2, 2)
    assert low.rate(2, 1) < 0.01 < 0.9 < high.rate(2, 1)
    assert AheadHits().rate(1, 1) == pytest.approx(0.7**2)


@pytest.mark.parametrize("num_branches", [1, 4])
def test_it_learns_what_happens_and_takes_it_for_other_numbers_of_drafts(num_branches: int) -> None:
    hits, rng, guessed = AheadHits(), random.Random(1), 0.8
    for _ in range(2000):
        missed = (1 - guessed**3) ** num_branches**0.5
        hits.add(2, num_branches, rng.random() >= missed)
    assert hits.rate(2, num_branches) == pytest.approx(1 - missed, abs=0.06)
    for num_drafts in (0, 1, 4):
        expected = 1 - (1 - guessed ** (num_drafts + 1)) ** num_branches**0.5
        assert hits.rate(num_drafts, num_branches) == pytest.approx(expected, abs=0.08), num_drafts


def test_more_drafts_come_true_more_rarely_and_more_branches_more_often() -> None:
    hits = AheadHits()
    rates = [hits.rate(num_drafts, 1) for num_drafts in range(6)]
    assert rates == sorted(rates, reverse=True)
    assert hits.rate(2, 1) < hits.rate(2, 2) < hits.rate(2, 16) < 1


@pytest.mark.parametrize("num_requests", [1, 2, 8])
def test_the_requests_of_a_batch_with_drafts_are_those_that_a_simulation_finds(num_requests: int) -> None:
    hits, rng = AheadHits(), random.Random(2)
    rate_of = {0: hits.rate(0, 1), 2: hits.rate(2, 1)}
    drafts, num_drafted, num_asked, num_rounds = [2] * num_requests, 0, 0, 20_000
    for _ in range(num_rounds):
        ready = [rng.random() < rate_of[each] for each in drafts]
        drafts = [2 if came_true or not any(ready) else 0 for came_true in ready]
        num_asked += not any(ready)
        num_drafted += sum(each > 0 for each in drafts)
    share, is_asked = hits.settle(2, 1, num_requests)
    assert share == pytest.approx(num_drafted / num_requests / num_rounds, abs=0.03)
    assert is_asked == pytest.approx(num_asked / num_rounds, abs=0.03)


def test_sure_hits_and_sure_misses_stay_numbers() -> None:
    hits = AheadHits()
    for came_true in (True, False):
        for _ in range(3000):
            hits.add(1, 4, came_true)
        assert 0 <= hits.rate(1, 4) <= 1
        assert all(0 <= part <= 1 for part in hits.settle(3, 4, 4))
