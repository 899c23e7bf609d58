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
from minedraft_workers.clock import clock_for
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.choosing import DraftChooser
from minedraft_workers.sampling.choose import DEFAULT_TOP_M
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
        self._chooser = DraftChooser(sampler or Sampler(), executor.vocab_size, executor.draft_vocab_ids, top_m)

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
            self._chooser.choose(logits, active)
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
        self._executor.release_all()
        self._chooser.limit(target_vocab_size)

    def _forward(self, spans: Sequence[ForwardSpan]) -> torch.Tensor:
        with self._clock.forward():
            return self._executor.forward(spans)
