"""Two sources of drafts: which of them drafts, what the other one still does, and what becomes of its KV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, DraftMethod, SequenceSpec
from minedraft_workers.execution.spans import ForwardSpan
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.combined import CombinedProposer
from minedraft_workers.proposers.draft_model import ModelProposer
from minedraft_workers.sequence import SequenceState
from tests.support.in_process import load_executor
from tests.support.tiny_models import make_tiny_model

REPEATING = [11, 12, 13, 14, 15, 16, 11, 12, 13, 14]
SPEC = SequenceSpec(SamplingParams(), 1, 0, Acceptance.GREEDY)


class CountingInner:
    """Drafts token 9; records the drafts that it was asked for."""

    num_free_blocks = 3
    feature_layers: tuple[int, ...] = ()
    feature_size = 0

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def propose(self, rows: Sequence[DraftRow]) -> int:
        self.asked.append([row.draft_len for row in rows])
        for row in rows:
            row.state.replace_from(row.prefix_len, row.tokens)
            row.drafts = [9] * row.draft_len
        return 1

    def release(self, request_id: int) -> None:
        pass

    def reset(self, target_vocab_size: int) -> None:
        pass


def row_of(
    request_id: int, tokens: Sequence[int], prefix_len: int = 0, draft_len: int = 2, spec: SequenceSpec = SPEC
) -> DraftRow:
    state = SequenceState(request_id, spec, tokens[:prefix_len])
    return DraftRow(state, prefix_len, tokens[prefix_len:], draft_len)


def test_each_row_gets_the_drafts_of_one_source() -> None:
    inner = CountingInner()
    rows = [row_of(1, REPEATING), row_of(2, [1, 2, 3]), row_of(3, REPEATING, draft_len=0)]
    assert CombinedProposer(inner).propose(rows) == 1
    assert inner.asked == [[0, 2, 0]], "a looked up row is a row to cache"
    assert [row.drafts for row in rows] == [[15, 16], [9, 9], []]
    assert [row.source for row in rows[:2]] == [DraftMethod.NGRAM, DraftMethod.MODEL]
    assert rows[0].state.tokens == REPEATING


@pytest.mark.parametrize(("next_token", "source"), [(9, DraftMethod.MODEL), (8, DraftMethod.NGRAM)])
def test_the_source_whose_drafts_come_true_is_preferred(next_token: int, source: DraftMethod) -> None:
    """The inner proposer's drafts come true, or never do; of lookups nothing new is learned."""
    proposer = CombinedProposer(CountingInner())
    text = list(range(100, 110))
    proposer.propose([row_of(1, text)])
    for _ in range(200):
        text = [*text, next_token]
        proposer.propose([row_of(1, text, len(text) - 1)])
        proposer.release(1)
        text = [*text, len(text) + 1000]
        proposer.propose([row_of(1, text)])
    row = row_of(2, [1, 2, 3, 4, 1, 2])
    proposer.propose([row])
    assert row.source is source
    sampled = replace(SPEC, acceptance=Acceptance.REJECTION)
    unlike = [row_of(3, [1, 2, 3, 4, 1, 2], spec=sampled), row_of(4, REPEATING, spec=sampled)]
    proposer.propose(unlike)
    assert [row.source for row in unlike] == [DraftMethod.MODEL, DraftMethod.NGRAM], "nothing is known of sampled ones"


def test_drafts_of_the_inner_proposer_that_were_accepted_are_part_of_the_text() -> None:
    """They are cached, so the next round does not send them again."""
    proposer, state = CombinedProposer(CountingInner()), SequenceState(1, SPEC)
    first = DraftRow(state, 0, [1, 2, 3, 4], 3)
    proposer.propose([first])
    assert first.drafts == [9, 9, 9]
    state.tokens += [9, 9]  # the inner proposer has cached all but the last
    second = DraftRow(state, 6, [9, 7, 2, 3, 4], 3)
    proposer.propose([second])
    assert (second.source, second.drafts) == (DraftMethod.NGRAM, [9, 9, 9])


def test_the_model_catches_up_with_drafts_that_were_looked_up(tmp_path: Path) -> None:
    """After a round of looked up drafts the model proposes what it does for the whole text at once."""
    folder = make_tiny_model(tmp_path / "model", seed=3)
    combined = CombinedProposer(ModelProposer(load_executor(folder)))
    state = SequenceState(1, SPEC)
    looked_up = DraftRow(state, 0, REPEATING, 3)
    combined.propose([looked_up])
    assert looked_up.source is DraftMethod.NGRAM
    text = [*REPEATING, 15, 16, 11, 77]  # all were accepted, and one more token
    drafted = DraftRow(state, len(REPEATING), text[len(REPEATING) :], 3)
    combined.propose([drafted])
    assert drafted.source is DraftMethod.MODEL
    alone = load_executor(folder)
    expected: list[int] = []
    for _ in range(3):
        logits = alone.forward([ForwardSpan(1, 0, (*text, *expected), 1)])
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        expected.append(int(logits[0].argmax()))
    assert drafted.drafts == expected
    assert state.tokens == [*text, *expected[:2]]
