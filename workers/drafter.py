"""The drafter: keeps each request's tokens and lets a proposer (model or n-grams) continue them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from minedraft.messages import Branch, DraftCommand, DraftSpan, Proposal, TruncatedQ, WorkerInfo
from minedraft.types import DraftMethod, ScoreKind
from minedraft_workers.channels.base import TokenChannel
from minedraft_workers.channels.inline import InlineChannel
from minedraft_workers.execution.memory import within_memory
from minedraft_workers.feature_rows import read_features
from minedraft_workers.proposers.base import DraftRow, Proposer
from minedraft_workers.request_table import RequestTable
from minedraft_workers.rounds.actors import Work
from minedraft_workers.sampling.guides import Guides
from minedraft_workers.sequence import SequenceState

if TYPE_CHECKING:
    from minedraft_workers.execution.runner import GraphCapturing

logger = logging.getLogger("minedraft.drafter")


class DrafterActor:
    """Executes the Drafter commands, in the device thread.

    Attributes:
        resize: sets the number of threads; None if it has a fixed number.
    """

    def __init__(
        self,
        proposer: Proposer,
        info: WorkerInfo,
        channel: TokenChannel | None = None,
        guides: Guides | None = None,
        resize: Callable[[int], None] | None = None,
    ) -> None:
        self.info = info
        self.resize = resize
        self._proposer = proposer
        self._channel = channel or InlineChannel()
        self._method = info.draft_method or DraftMethod.MODEL
        self._requests = RequestTable(guides)

    @property
    def graphs(self) -> GraphCapturing | None:
        """What captures the draft model's forwards as CUDA graphs; None where they run without."""
        return self._proposer.graphs

    @property
    def num_free_blocks(self) -> int:
        return self._proposer.num_free_blocks

    @within_memory
    def draft(self, command: DraftCommand) -> Work[Proposal]:
        """Release requests, cache the new tokens, propose. Implements `DraftingActor`."""
        self.release(command.released)
        states = [self._requests.find(span) for span in command.spans]  # all of them, before any is changed
        spans = zip(states, command.spans, strict=True)
        rows = [self._to_row(state, span, command.scores) for state, span in spans]
        forward_ns = self._proposer.propose(rows)
        self._requests.keep(row.state for row in rows)
        proposals = [
            self._to_proposal(answer)
            for row, span in zip(rows, command.spans, strict=True)
            if span.draft_len
            for answer in (row.branches if row.ahead is not None else (row,))
        ]
        return Work(tuple(proposals), forward_ns, sum(_count_not_finite(row) for row in rows))

    def prefill(self, command: DraftCommand) -> Work[Proposal]:
        """Execute a draft command that is sent during the verify of its round: its spans cache, or run ahead."""
        return self.draft(command)

    def release(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._requests.forget(request_id)
            self._proposer.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        self._requests.clear()
        self._proposer.reset(target_vocab_size)

    def _to_row(self, state: SequenceState, span: DraftSpan, scores: ScoreKind) -> DraftRow:
        row = DraftRow(state, span.prefix_len, span.tokens, span.draft_len, source=self._method, score_kind=scores)
        row.features = read_features(span, self.info.feature_size, self._channel)
        row.adopts, row.ahead = state.branches[span.branch - 1].kv_id if span.branch else 0, span.ahead
        state.take_branch(span.branch)
        return row

    def _to_proposal(self, row: DraftRow) -> Proposal:
        q = None
        if row.q_ids:
            pack = self._channel.pack
            ids, probs = (torch.from_numpy(np.array(side)) for side in (row.q_ids, row.q_probs))
            q = TruncatedQ(pack(ids), pack(probs))
        branch = Branch(len(row.lead) - 1, row.lead[-1]) if row.lead else None
        committed_len, drafts = row.committed_len + len(row.lead), tuple(row.drafts)
        state = row.state
        if state.guide is not None and row.source is DraftMethod.NGRAM:  # a model's logits were masked
            drafts = drafts[: state.guide.count_allowed(state.tokens, drafts)]
        return Proposal(row.state.request_id, committed_len, drafts, q, row.source, tuple(row.scores), branch)


def _count_not_finite(row: DraftRow) -> int:
    return (not row.is_finite) + sum(not branch.is_finite for branch in row.branches)
