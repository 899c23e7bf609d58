"""What a drafter says of its drafts: probabilities under the logits as they are, or nothing."""

from __future__ import annotations

import pytest
import torch

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, ScoreKind, SequenceSpec
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.choosing import DraftChooser
from minedraft_workers.proposers.ngram import NgramProposer
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sequence import SequenceState

LOGITS = 3.0 * torch.randn(3, 50, generator=torch.Generator().manual_seed(4))
ACCEPTANCES = (Acceptance.GREEDY, Acceptance.COUPLED, Acceptance.REJECTION)


def make_rows(kind: ScoreKind) -> list[DraftRow]:
    rows = []
    for index, acceptance in enumerate(ACCEPTANCES):
        params = SamplingParams(temperature=0.0 if acceptance is Acceptance.GREEDY else 0.7)
        state = SequenceState(index, SequenceSpec(params, 1, index, acceptance), [1, 2])
        rows.append(DraftRow(state, 0, [1, 2], 2, score_kind=kind))
    return rows


@pytest.mark.parametrize("ids", [None, torch.arange(100, 250, 3, dtype=torch.int32)])
@pytest.mark.parametrize("kind", list(ScoreKind))
def test_a_draft_has_a_score_of_the_kind_that_is_asked_for(kind: ScoreKind, ids: torch.Tensor | None) -> None:
    rows = make_rows(kind)
    DraftChooser(Sampler(), 300, ids, 8).choose(LOGITS, rows)
    probs = LOGITS.softmax(dim=-1)
    for index, row in enumerate(rows):
        column = row.drafts[0] if ids is None else ids.tolist().index(row.drafts[0])
        expected = {
            ScoreKind.NONE: [],
            ScoreKind.PEAK: [float(probs[index].max())],
            ScoreKind.DRAWN: [float(probs[index, column])],
        }[kind]
        assert row.scores == pytest.approx(expected, rel=1e-5)


def test_a_row_without_a_draft_has_no_score() -> None:
    rows, logits = make_rows(ScoreKind.PEAK), LOGITS.clone()
    logits[1, 7] = float("nan")
    DraftChooser(Sampler(), 50, None, 8).choose(logits, rows)
    assert [len(row.scores) for row in rows] == [len(row.drafts) for row in rows] == [1, 0, 1]


def test_looked_up_drafts_are_scored_by_what_became_of_earlier_ones() -> None:
    spec = SequenceSpec(SamplingParams(), 1, 0, Acceptance.GREEDY)
    rows = [DraftRow(SequenceState(n, spec), 0, [5, 6, 7, 8, 5, 6, 7], 2, score_kind=ScoreKind(n)) for n in (0, 1)]
    NgramProposer().propose(rows)
    assert rows[0].scores == []
    assert rows[1].scores == pytest.approx([0.64, 0.64])
