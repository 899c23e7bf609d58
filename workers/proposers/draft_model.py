"""Drafting with a small language model.

A round is `draft_len` forwards in a row: the first has the tokens that are not cached yet, each later one
a single token per request. The last draft is not fed back, so after a round the KV holds the committed
tokens and all drafts but the last.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from minedraft.core.blocks import BlocksExhausted
from minedraft.types import Acceptance
from minedraft_workers.clock import clock_for
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.sampling.choose import DEFAULT_TOP_M, ChoiceRow
from minedraft_workers.sampling.sampler import Sampler

logger = logging.getLogger("minedraft.drafter")


class ModelProposer:
    """Drafts with a small language model."""

    feature_layers: tuple[int, ...] = ()
    feature_size = 0

    def __init__(self, executor: Executor, sampler: Sampler | None = None, top_m: int = DEFAULT_TOP_M) -> None:
        """Take the draft model, and what chooses from its logits, by default with torch."""
        self._executor = executor
        self._clock = clock_for(executor.device)
        self._sampler = sampler or Sampler()
        self._top_m = top_m
        self._num_columns = executor.num_columns
        self._draft_vocab_ids = executor.draft_vocab_ids
        self._num_bad = 0

    @property
    def num_free_blocks(self) -> int:
        return self._executor.num_free_blocks

    def propose(self, rows: Sequence[DraftRow]) -> int:
        """Cache each row's tokens, then draft until every row has `draft_len` drafts. Implements `Proposer`.

        A row gets fewer drafts at the end of its context or at logits that are not finite; all rows do if
        the KV blocks or the memory run out.
        """
        self._clock.start()
        logits = self._forward(
            [ForwardSpan(row.state.request_id, row.prefix_len, row.tokens, 1 if row.draft_len else 0) for row in rows]
        )
        for row in rows:
            row.state.replace_from(row.prefix_len, row.tokens)
            # The KV of draft i (from 1) is at position committed_len + i - 1; the last draft has none.
            row.draft_len = min(row.draft_len, self._executor.max_model_len - row.committed_len + 1)
        active = [row for row in rows if row.draft_len]
        while active:
            self._choose(logits, active)
            active = [row for row in active if not row.is_done]
            if not active:
                break
            try:
                logits = self._forward(
                    [
                        ForwardSpan(row.state.request_id, row.committed_len + len(row.drafts) - 1, row.drafts[-1:], 1)
                        for row in active
                    ]
                )
            except (BlocksExhausted, torch.OutOfMemoryError) as error:
                logger.warning("drafting stopped early: %s", error)
                break
        for row in rows:
            row.state.tokens.extend(row.drafts[:-1])
        return self._clock.finish()

    def release(self, request_id: int) -> None:
        self._executor.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        """Forget every request. From now on, columns of ids that the target has no row for are ignored. To cut
        a proposal at such an id instead would, under REJECTION, make its law depend on the id."""
        self._executor.release_all()
        ids = self._executor.draft_vocab_ids
        limit = target_vocab_size or self._executor.vocab_size
        self._num_columns = min(self._executor.num_columns, limit) if ids is None else int((ids < limit).sum())
        self._draft_vocab_ids = None if ids is None else ids[: self._num_columns]  # they ascend

    def _forward(self, spans: Sequence[ForwardSpan]) -> torch.Tensor:
        with self._clock.forward():
            return self._executor.forward(spans)

    def _choose(self, logits: torch.Tensor, rows: Sequence[DraftRow]) -> None:
        """Add a draft to each row; a row whose logits are not finite ends."""
        choice = self._sampler.choose_drafts(
            logits[:, : self._num_columns],
            [ChoiceRow(row.state, row.committed_len + len(row.drafts), row.drafts) for row in rows],
            self._draft_vocab_ids,
            self._top_m,
        )
        self._count_bad(sum(token is None for token in choice.tokens))
        for row, token in zip(rows, choice.tokens, strict=True):
            if token is None:
                row.draft_len = len(row.drafts)
            else:
                row.drafts.append(token)
        if choice.q_ids is None or choice.q_probs is None:
            return
        # A row of an array costs a tenth of a row of a tensor.
        for row, token, ids, probs in zip(
            rows, choice.tokens, choice.q_ids.numpy(), choice.q_probs.numpy(), strict=True
        ):
            if token is not None and row.state.spec.acceptance is Acceptance.REJECTION:
                row.q_ids.append(ids)
                row.q_probs.append(probs)

    def _count_bad(self, num_rows: int) -> None:
        """Log bad rows at the first and at every power of two: a broken draft model would fill the log."""
        before, self._num_bad = self._num_bad, self._num_bad + num_rows
        if before.bit_length() < self._num_bad.bit_length():
            logger.warning("the draft model's logits are not finite; rows without a draft so far: %d", self._num_bad)
