"""The choice of drafts over a batch: the best prefixes, within a capacity, whatever the policy inside wants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minedraft.core import events
from minedraft.core.policy.base import DraftOffer, FixedDraftLen
from minedraft.core.policy.tetris import TetrisPolicy, best_prefixes
from minedraft.core.request import NewRequest, Request
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason

SCORES = st.lists(st.lists(st.floats(0.01, 1.0), max_size=5), max_size=5)


def make_request(request_id: int) -> Request:
    return Request.create(request_id, NewRequest((1, 2), SamplingParams()))


@settings(deadline=None, max_examples=300)
@given(SCORES, st.integers(0, 12))
def test_the_prefixes_with_the_largest_products_are_taken(scores: list[list[float]], capacity: int) -> None:
    taken = best_prefixes(scores, capacity)
    products = [math.prod(row[: index + 1]) for row in scores for index in range(len(row))]
    kept = [math.prod(row[: index + 1]) for row, n in zip(scores, taken, strict=True) for index in range(n)]
    assert sum(taken) == min(capacity, len(products))
    assert sorted(kept, reverse=True) == pytest.approx(sorted(products, reverse=True)[: sum(taken)])


@settings(deadline=None, max_examples=300)
@given(SCORES, st.integers(0, 12), st.data())
def test_a_score_counts_only_once_all_drafts_before_it_are_taken(
    scores: list[list[float]], capacity: int, data: st.DataObject
) -> None:
    """What comes after the first draft that is left may have depended on that draft."""
    taken = best_prefixes(scores, capacity)
    other = [
        [score if index <= n else data.draw(st.floats(0.0, 1.0)) for index, score in enumerate(row)]
        for row, n in zip(scores, taken, strict=True)
    ]
    assert best_prefixes(other, capacity) == taken


def test_it_asks_for_extra_drafts_and_has_as_many_verified_as_without_them() -> None:
    policy = TetrisPolicy(FixedDraftLen(), extra_drafts=2)
    assert [policy.draft_len(make_request(n), 2, 5) for n in (1, 2)] == [5, 5]
    offers = [DraftOffer(1, 5, (0.9, 0.9, 0.9, 0.9, 0.9)), DraftOffer(2, 5, (0.5, 0.5, 0.5, 0.5, 0.5))]
    assert policy.select(offers) == [5, 1], "three a request, in all"
    assert policy.select(offers[1:]) == [3], "a request alone gets its own"


@pytest.mark.parametrize(("max_draft_len", "wanted"), [(5, 5), (3, 3), (2, 2), (1, 1), (0, 0)])
def test_a_request_gets_no_more_drafts_than_it_allows(max_draft_len: int, wanted: int) -> None:
    assert TetrisPolicy(FixedDraftLen(), 2).draft_len(make_request(1), 1, max_draft_len) == wanted


def test_a_capacity_of_the_settings_holds_for_the_round() -> None:
    policy = TetrisPolicy(FixedDraftLen(), 1, capacity=3)
    offers = [DraftOffer(n, 2, (0.8 - n / 100, 0.7)) for n in range(4)]
    assert policy.select(offers) == [1, 1, 1, 0]


def test_drafts_without_scores_are_taken_evenly() -> None:
    policy = TetrisPolicy(FixedDraftLen(), 1, capacity=4)
    assert policy.select([DraftOffer(1, 3), DraftOffer(2, 3), DraftOffer(3, 0)]) == [2, 2, 0]


class NoDrafts(FixedDraftLen):
    """Wants none, and counts what it is told."""

    def __init__(self) -> None:
        self.num_events = 0

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        return 0

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        return [1 for _ in offers]

    def observe(self, event: events.Event, now_s: float) -> None:
        self.num_events += 1


def test_the_policy_inside_decides_whether_to_draft_and_hears_of_everything() -> None:
    inner = NoDrafts()
    policy = TetrisPolicy(inner, 2, capacity=9)
    assert policy.draft_len(make_request(1), 1, 5) == 0
    assert policy.select([DraftOffer(1, 4, (0.9,) * 4)]) == [1], "it may also shorten"
    policy.observe(events.RequestEnded(1, 3, FinishReason.STOP), 0.0)
    assert inner.num_events == 1
    assert not policy._wanted, "a request that has ended leaves nothing"
