"""The choice of drafts from a model's logits, for every proposer that has some."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from minedraft.messages import Branch
from minedraft.types import Acceptance, ScoreKind
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.branches import likely_branches
from minedraft_workers.sampling.choose import ChoiceRow
from minedraft_workers.sampling.sampler import Sampler

logger = logging.getLogger("minedraft.drafter")


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

    def choose_branches(self, logits: torch.Tensor, row: DraftRow) -> Sequence[Branch]:
        """Return the branches of a row that runs ahead; see `likely_branches`."""
        assert row.ahead is not None, "the row runs ahead"
        columns = logits[:, : self._num_columns]
        branches = likely_branches(columns, row.state, row.in_flight, row.ahead.num_branches, self._ids)
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
