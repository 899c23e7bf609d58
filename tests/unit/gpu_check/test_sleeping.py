"""The drafter that sleeps: its times, and that its drafts are the controlled draft model's."""

from __future__ import annotations

import json

import pytest

from minedraft.messages import DraftCommand, DraftSpan
from minedraft.types import Batch, RoundId
from scripts.gpu.controlled.sleeping import DraftTimes, SleepingDrafter
from scripts.gpu.controlled.token_map import TokenMap
from scripts.gpu.steps.pair import draft_times_ms

TIMES = DraftTimes.from_json(json.dumps({16: {1: 1.0, 4: 3.0}, 64: {1: 2.0, 4: 7.0}}))


@pytest.mark.parametrize(
    ("num_requests", "draft_len", "ms"),
    [(16, 4, 3), (1, 1, 1), (5, 3, 3), (17, 2, 7), (64, 1, 2), (200, 9, 7), (0, 4, 0), (8, 0, 0)],
)
def test_a_time_between_entries_is_that_of_the_next_larger_one(num_requests: int, draft_len: int, ms: float) -> None:
    assert TIMES.seconds(num_requests, draft_len) == pytest.approx(ms / 1e3)


def test_a_table_without_times_is_refused() -> None:
    with pytest.raises(ValueError, match="draft times"):
        DraftTimes({16: {}})


def test_it_sleeps_the_rest_of_the_time_and_proposes_what_the_model_would(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    token_map = TokenMap.make(100, 0.5)
    drafter = SleepingDrafter(token_map, TIMES, None)
    spans = (DraftSpan(1, 5, (7, 8), 4), DraftSpan(2, 0, (3,), 0), DraftSpan(3, 9, (9,), 2))
    proposals = drafter.draft(DraftCommand(RoundId(0, Batch.A, 1), spans)).rows
    assert [(p.request_id, p.committed_len, list(p.tokens)) for p in proposals] == [
        (1, 7, token_map.drafts(8, 4)),
        (3, 10, token_map.drafts(9, 2)),
    ]
    assert len(slept) == 1
    assert 0 < slept[0] <= 3e-3


def test_the_times_are_those_measured_alone() -> None:
    rows = [{"m": 16, "k": 4, "ms": 3.0}, {"m": 16, "k": 1, "ms": 1.0}, {"m": 64, "k": 4, "ms": 7.0}]
    assert draft_times_ms(rows, 4) == {16: {4: 3.0, 1: 1.0}, 64: {4: 7.0}}
    assert set(draft_times_ms([], 2)[1]) == {1, 2}, "without them, times are assumed"
