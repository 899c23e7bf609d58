"""Drafting with a head that reads the target's own features.

What the head knows of a request is shifted by one: its position i is token i + 1 with the target's feature of
token i. So a request of n committed tokens, of which the last has not been through the target yet, has n - 1
positions, and the last of them proposes token n. For drafts after the first the head is given its own state in
place of the feature; their KV counts for nothing: the next round runs the accepted ones again with the features
that the target has made of them since.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from minedraft.core.blocks import BlocksExhausted
from minedraft.errors import ProtocolError
from minedraft_workers.clock import clock_for
from minedraft_workers.execution.eagle.head import EagleHead, HeadOutput
from minedraft_workers.execution.runner import GraphCapturing
from minedraft_workers.execution.spans import ForwardSpan
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.choosing import DraftChooser, StepChoice
from minedraft_workers.sampling.batched.transfer import upload
from minedraft_workers.sampling.choose import DEFAULT_TOP_M
from minedraft_workers.sampling.sampler import Sampler

logger = logging.getLogger("minedraft.drafter")


class EagleProposer:
    """Drafts with a head. A row's tokens are those whose pairs of token and feature are not cached yet."""

    def __init__(
        self,
        head: EagleHead,
        sampler: Sampler | None = None,
        top_m: int = DEFAULT_TOP_M,
        *,
        loops_on_device: bool | None = None,
    ) -> None:
        """Take the head, and what chooses from its logits, by default with torch.

        loops_on_device: as of `ModelProposer`.
        """
        self._head = head
        self._clock = clock_for(head.device)
        self._chooser = DraftChooser(sampler or Sampler(), head.vocab_size, head.draft_vocab_ids, top_m)
        self._loops = head.device.type == "cuda" if loops_on_device is None else loops_on_device
        self.feature_layers = head.feature_layers
        self.feature_size = head.feature_size

    @property
    def graphs(self) -> GraphCapturing | None:
        return self._head.graphs

    @property
    def num_free_blocks(self) -> int:
        return self._head.num_free_blocks

    def propose(self, rows: Sequence[DraftRow]) -> int:
        """Cache each row's tokens with their features, then draft until every row has `draft_len` drafts.
        Implements `Proposer`.

        A row gets fewer drafts at the end of its context or at logits that are not finite, and none if it has a
        single token; all rows do if the KV blocks or the memory run out.
        """
        self._clock.start()
        for row in rows:
            # Draft i (from 2 on) is proposed at position committed_len + i - 3.
            room = self._head.max_model_len - row.committed_len + 2 if row.committed_len > 1 else 0
            row.draft_len = max(min(row.draft_len, room), 0)
        new = [row for row in rows if row.committed_len > 1]
        features = [_features_of(row, self.feature_size) for row in new]
        output = self._forward([_first_span(row) for row in new], _join(features, self.feature_size))
        for row in rows:
            row.state.replace_from(row.prefix_len, row.tokens)
        active = [row for row in new if row.draft_len]
        if self._loops:
            self._draft_on_device(output, active)
        else:
            self._draft(output, active)
        return self._clock.finish()

    def release(self, request_id: int) -> None:
        self._head.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        self._head.release_all()
        self._chooser.limit(target_vocab_size)

    def _draft(self, output: HeadOutput, active: list[DraftRow]) -> None:
        """Draft for these rows, whose next drafts the output is of, until each has all of its drafts."""
        while active:
            self._chooser.choose(output.logits, active)
            going_on = [index for index, row in enumerate(active) if not row.is_done]
            if not going_on:
                return
            states = output.states_of(going_on)
            active = [active[index] for index in going_on]
            spans = [
                ForwardSpan(row.state.request_id, row.committed_len + len(row.drafts) - 2, row.drafts[-1:], 1)
                for row in active
            ]
            try:
                output = self._forward(spans, states, are_states=True)
            except (BlocksExhausted, torch.OutOfMemoryError) as error:
                logger.warning("drafting stopped early: %s", error)
                return

    def _draft_on_device(self, output: HeadOutput, active: list[DraftRow]) -> None:
        """Draft as `_draft`, but keep the tokens on the device until the end."""
        steps: list[StepChoice] = []
        running, numbers = self._chooser.start_on_device(active, output.logits.device), list(range(len(active)))
        while active:
            count = len(steps)  # drafts that each of these rows has by then
            counts = [count] * len(active)
            steps.append(self._chooser.choose_on_device(output.logits, active, counts, running, numbers))
            going_on = [index for index, row in enumerate(active) if row.draft_len > count + 1]
            if not going_on:
                break
            states, ids = output.states_of(going_on), steps[-1].ids
            if len(going_on) < len(active):
                ids = ids.index_select(0, upload(np.array(going_on, np.int64), ids.device))
            active, numbers = [active[index] for index in going_on], [numbers[index] for index in going_on]
            # The token in the span is in place of the one that is given.
            spans = [ForwardSpan(row.state.request_id, row.committed_len + count - 1, (0,), 1) for row in active]
            try:
                output = self._forward(spans, states, are_states=True, ids=ids)
            except (BlocksExhausted, torch.OutOfMemoryError) as error:
                logger.warning("drafting stopped early: %s", error)
                break
        self._chooser.take(steps)

    def _forward(
        self,
        spans: Sequence[ForwardSpan],
        given: torch.Tensor,
        *,
        are_states: bool = False,
        ids: torch.Tensor | None = None,
    ) -> HeadOutput:
        with self._clock.forward():
            return self._head.forward(spans, given, are_states=are_states, ids=ids)


def _first_span(row: DraftRow) -> ForwardSpan:
    """Return the span of the positions of a row's new tokens; a request's first token has none."""
    tokens = row.tokens if row.prefix_len else row.tokens[1:]
    return ForwardSpan(row.state.request_id, max(row.prefix_len - 1, 0), tokens, 1 if row.draft_len else 0)


def _features_of(row: DraftRow, size: int) -> torch.Tensor:
    """Return the row's features, one row for each of its new positions.

    Raises:
        ProtocolError: it has others, or none.
    """
    wanted = [row.committed_len - 1 - max(row.prefix_len - 1, 0), size]
    found = None if row.features is None else list(row.features.shape)
    if row.features is None or found != wanted:
        name = f"span of request {row.state.request_id}"
        raise ProtocolError(
            f"{name} has features {found} for {len(row.tokens)} tokens after {row.prefix_len}, must be {wanted}"
        )
    return row.features


def _join(features: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    if len(features) == 1:
        return features[0]
    return torch.cat(list(features)) if features else torch.empty(0, size)
