"""The drafter: keeps each request's tokens and lets a proposer (model or n-grams) continue them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from minedraft.messages import DraftCommand, DraftSpan, Proposal, TruncatedQ, WorkerInfo
from minedraft.types import DraftMethod, ScoreKind
from minedraft_workers.channels.base import TokenChannel
from minedraft_workers.channels.inline import InlineChannel
from minedraft_workers.execution.memory import within_memory
from minedraft_workers.feature_rows import read_features
from minedraft_workers.proposers.base import DraftRow, Proposer
from minedraft_workers.request_table import RequestTable
from minedraft_workers.rounds.runtime import Work

logger = logging.getLogger("minedraft.drafter")


class DrafterActor:
    """Executes the Drafter commands, in the device thread."""

    def __init__(self, proposer: Proposer, info: WorkerInfo, channel: TokenChannel | None = None) -> None:
        self.info = info
        self._proposer = proposer
        self._channel = channel or InlineChannel()
        self._method = info.draft_method or DraftMethod.MODEL
        self._requests = RequestTable()

    @property
    def num_free_blocks(self) -> int:
        return self._proposer.num_free_blocks

    @within_memory
    def draft(self, command: DraftCommand) -> Work[Proposal]:
        """Release requests, cache the new tokens, propose. Implements `DraftingActor`."""
        self.release(command.released)
        rows = [self._to_row(span, command.scores) for span in command.spans]
        forward_ns = self._proposer.propose(rows)
        self._requests.keep(row.state for row in rows)
        asked = [row for row, span in zip(rows, command.spans, strict=True) if span.draft_len]
        return Work(tuple([self._to_proposal(row) for row in asked]), forward_ns)

    def prefill(self, command: DraftCommand) -> Work[Proposal]:
        """Execute a draft command whose spans ask for no drafts."""
        return self.draft(command)

    def release(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._requests.forget(request_id)
            self._proposer.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        self._requests.clear()
        self._proposer.reset(target_vocab_size)

    def _to_row(self, span: DraftSpan, scores: ScoreKind) -> DraftRow:
        state, features = self._requests.find(span), read_features(span, self.info.feature_size, self._channel)
        row = DraftRow(state, span.prefix_len, span.tokens, span.draft_len, source=self._method, score_kind=scores)
        row.features = features
        return row

    def _to_proposal(self, row: DraftRow) -> Proposal:
        q = None
        if row.q_ids:
            pack = self._channel.pack
            ids, probs = (torch.from_numpy(np.array(side)) for side in (row.q_ids, row.q_probs))
            q = TruncatedQ(pack(ids), pack(probs))
        scores = tuple(row.scores)
        return Proposal(row.state.request_id, row.committed_len, tuple(row.drafts), q, row.source, scores)
