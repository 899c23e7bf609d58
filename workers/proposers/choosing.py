"""The choice of drafts from a model's logits, for every proposer that has some."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minedraft.messages import Branch
from minedraft.types import Acceptance, ScoreKind
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.branches import likely_branches
from minedraft_workers.sampling.batched.adjusting import RowContext
from minedraft_workers.sampling.batched.drafts import choose_rows
from minedraft_workers.sampling.batched.rules import RowRules, RulePlace
from minedraft_workers.sampling.batched.running import RunningAdjustment
from minedraft_workers.sampling.batched.transfer import download, upload
from minedraft_workers.sampling.choose import ChoiceRow
from minedraft_workers.sampling.randomness import Purpose
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sampling.vocab_columns import columns_of

logger = logging.getLogger("minedraft.drafter")


@dataclass(frozen=True, slots=True, eq=False)
class StepChoice:
    """The next drafts of some rows, on the device.

    ids: int64 [rows]; of a row that is not usable, some id. is_usable: bool [rows]. scores: float64 [rows], None if no
    row wants one. q_ids, q_probs: int64 and float32 [rows, m], None if no row is under REJECTION.
    """

    rows: Sequence[DraftRow]
    ids: torch.Tensor
    is_usable: torch.Tensor
    scores: torch.Tensor | None
    q_ids: torch.Tensor | None
    q_probs: torch.Tensor | None


class DraftChooser:
    """Chooses a draft for each row, from the columns of ids that the target knows.

    Args:
        vocab_size: the model's ids are below it.
        draft_vocab_ids: integers [n], ascending, the token id of each column; None: column j is token j.
        top_m: tokens that q is truncated to under REJECTION.
    """

    def __init__(self, sampler: Sampler, vocab_size: int, draft_vocab_ids: torch.Tensor | None, top_m: int) -> None:
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._all_ids = draft_vocab_ids
        self._top_m = top_m
        self._num_bad = 0
        self.limit(0)

    def limit(self, target_vocab_size: int) -> None:
        """From now on, ignore the columns of ids that the target has no row for (0: none). To cut a proposal at
        such an id instead would, under REJECTION, make its law depend on the id."""
        ids, limit = self._all_ids, target_vocab_size or self._vocab_size
        self._num_columns = min(self._vocab_size, limit) if ids is None else int((ids < limit).sum())
        self._ids = None if ids is None else ids[: self._num_columns]  # they ascend
        self._host_ids = None if self._ids is None else self._ids.cpu()

    def choose(self, logits: torch.Tensor, rows: Sequence[DraftRow]) -> None:
        """Add a draft to each row; a row whose logits are not finite ends.

        Args:
            logits: float32 [rows, columns].
        """
        logits = logits[:, : self._num_columns]
        choice = self._sampler.choose_drafts(
            logits,
            [_to_choice(row) for row in rows],
            self._ids,
            self._top_m,
        )
        self._count_bad(sum(token is None for token in choice.tokens))
        for row, token in zip(rows, choice.tokens, strict=True):
            if token is None:
                row.draft_len, row.is_finite = len(row.drafts), False
            else:
                row.drafts.append(token)
        if any(row.score_kind for row in rows):
            self._score(logits, rows, choice.tokens)
        if choice.q_ids is None or choice.q_probs is None:
            return
        # A row of an array costs a tenth of a row of a tensor.
        for row, token, ids, probs in zip(
            rows, choice.tokens, choice.q_ids.numpy(), choice.q_probs.numpy(), strict=True
        ):
            if token is not None and row.state.spec.acceptance is Acceptance.REJECTION:
                row.q_ids.append(ids)
                row.q_probs.append(probs)

    def start_on_device(self, rows: Sequence[DraftRow], device: torch.device) -> RunningAdjustment:
        """Return what penalties, biases and minimum lengths change while all these rows are drafted for."""
        contexts = [RowContext(row.state, row.uncommitted) for row in rows]
        return RunningAdjustment(contexts, columns_of(self._num_columns, device, self._ids), device)

    def choose_on_device(
        self,
        logits: torch.Tensor,
        rows: Sequence[DraftRow],
        counts: Sequence[int],
        running: RunningAdjustment,
        numbers: Sequence[int],
    ) -> StepChoice:
        """Return the next draft of each row, without a wait for the device; `take` adds them to the rows.

        Args:
            logits: float32 [rows, columns].
            counts: the drafts that each row has by then.
            running: of `start_on_device`. numbers: of the rows among those that it was started with.
        """
        logits = logits[:, : self._num_columns]
        columns = columns_of(logits.shape[1], logits.device, self._ids)
        places = [
            RulePlace(row.state, row.committed_len + len(row.lead) + count, count)
            for row, count in zip(rows, counts, strict=True)
        ]
        rules = RowRules.make(places, columns.num_columns, logits.device, (Purpose.DRAFT,))
        chosen = choose_rows(running.adjust(logits, numbers, counts), rules, columns, self._top_m)
        running.note(chosen.columns, numbers)
        q_ids = None if chosen.q_columns is None else self._ids_of(chosen.q_columns)
        scores = self._score_rows(logits, rows, chosen.columns) if any(row.score_kind for row in rows) else None
        return StepChoice(rows, self._ids_of(chosen.columns), chosen.is_usable, scores, q_ids, chosen.q_probs)

    def take(self, steps: Sequence[StepChoice]) -> None:
        """Add the drafts of all steps, in their order, to their rows, by one copy to the host. A row ends where it is
        not usable."""
        if not steps:
            return
        sides = [(step.ids, step.is_usable, step.scores, step.q_ids, step.q_probs) for step in steps]
        found = iter(download(*(side for step in sides for side in step if side is not None)))
        for step, tensors in zip(steps, sides, strict=True):
            ids, usable, scores, q_ids, q_probs = (None if side is None else next(found) for side in tensors)
            assert ids is not None, "every step has ids"
            assert usable is not None, "every step says which are usable"
            going_on = [index for index, row in enumerate(step.rows) if not row.is_done]
            self._count_bad(sum(not usable[index] for index in going_on))
            for index in going_on:
                row = step.rows[index]
                if not usable[index]:
                    row.draft_len, row.is_finite = len(row.drafts), False
                    continue
                row.drafts.append(int(ids[index]))
                if scores is not None and row.score_kind:
                    row.scores.append(float(scores[index]))
                if q_ids is not None and q_probs is not None and row.state.spec.acceptance is Acceptance.REJECTION:
                    row.q_ids.append(q_ids[index].astype(np.int32))
                    row.q_probs.append(q_probs[index].astype(np.float32))

    def _ids_of(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the token ids of columns, of any shape; -1 stays -1."""
        if self._ids is None:
            return columns
        return torch.where(columns < 0, columns, self._ids[columns.clamp(min=0)])

    def _score_rows(self, logits: torch.Tensor, rows: Sequence[DraftRow], columns: torch.Tensor) -> torch.Tensor:
        """Return what `_score` adds to the rows, float64 [rows]."""
        is_peak = upload(np.array([row.score_kind is ScoreKind.PEAK for row in rows]), logits.device)
        logit = torch.where(is_peak, logits.amax(dim=1), logits.gather(1, columns[:, None])[:, 0])
        return (logit.double() - logits.logsumexp(dim=1).double()).exp_().clamp_(max=1.0)

    def choose_branches(self, logits: torch.Tensor, row: DraftRow) -> Sequence[Branch]:
        """Return the branches of a row that runs ahead; see `likely_branches`. The logits are on the host."""
        assert row.ahead is not None, "the row runs ahead"
        columns = logits[:, : self._num_columns]
        branches = likely_branches(columns, row.state, row.in_flight, row.ahead.num_branches, self._host_ids)
        if not branches:  # nothing else keeps the first one away
            row.is_finite = False
            self._count_bad(1)
        return branches

    def _score(self, logits: torch.Tensor, rows: Sequence[DraftRow], tokens: Sequence[int | None]) -> None:
        """Add its score to each draft. It is of the logits as they are: temperature and truncation would make most
        drafts look certain."""
        peaks, log_totals = logits.amax(dim=-1).tolist(), logits.logsumexp(dim=-1).tolist()
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token is None or not row.score_kind:
                continue
            logit = peaks[index] if row.score_kind is ScoreKind.PEAK else float(logits[index, self._column(token)])
            row.scores.append(min(math.exp(logit - log_totals[index]), 1.0))

    def _column(self, token: int) -> int:
        return token if self._ids is None else int(torch.searchsorted(self._ids, token))

    def _count_bad(self, num_rows: int) -> None:
        """Log bad rows at the first and at every power of two: a broken draft model would fill the log."""
        before, self._num_bad = self._num_bad, self._num_bad + num_rows
        if before.bit_length() < self._num_bad.bit_length():
            logger.warning("the draft model's logits are not finite; rows without a draft so far: %d", self._num_bad)


def _to_choice(row: DraftRow) -> ChoiceRow:
    return ChoiceRow(row.state, row.committed_len + len(row.uncommitted), row.uncommitted, len(row.lead))
