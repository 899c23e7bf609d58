"""A round of drafts during which the host never waits for the device: the token of each step stays there.

Which rows take part in a step, at which positions and with which random numbers is known to the host beforehand; only
the tokens are not. So the host queues all forwards and choices, and learns the drafts by one copy at the end. A row
whose logits are not finite at some step goes on with some token, and what follows is thrown away. The tokens of a row
that follows a grammar are read in each step, while the device computes the next forward (`sampling/batched/guided.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from minedraft.core.blocks import BlocksExhausted
from minedraft_workers.execution.spans import ForwardSpan
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.choosing import DraftChooser, StepChoice
from minedraft_workers.sampling.batched.transfer import upload

logger = logging.getLogger("minedraft.drafter")


class DeviceLoop:
    """Drafts until each of some rows has its drafts, or the memory is at its end.

    Args:
        forward: runs spans of one token each, whose ids are given on the device, int64 [spans]; returns their logits.
    """

    def __init__(
        self, chooser: DraftChooser, forward: Callable[[Sequence[ForwardSpan], torch.Tensor], torch.Tensor]
    ) -> None:
        self._chooser = chooser
        self._forward = forward

    def draft(self, plain: Sequence[DraftRow], logits: torch.Tensor, branches: Sequence[DraftRow]) -> None:
        """Draft for rows without drafts.

        Args:
            plain: rows whose first drafts are chosen from `logits`, [rows, columns].
            branches: rows that go on from their last token, the branches of a run ahead.
        """
        rows, counts, steps = [*plain, *branches], [0] * (len(plain) + len(branches)), list[StepChoice]()
        device = logits.device
        running = self._chooser.start_on_device(rows, device)
        last = upload(np.array([row.uncommitted[-1] if row.lead else 0 for row in rows], np.int64), device)

        def choose(active: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            """Choose the next drafts of these rows, and return the last tokens of all."""
            of_active = [rows[i] for i in active], [counts[i] for i in active]
            step = self._chooser.choose_on_device(logits, *of_active, running, active)
            steps.append(step)
            for i in active:
                counts[i] += 1
            if len(active) == len(rows):
                return step.ids
            return last.index_copy(0, _index(active, device), step.ids)

        if plain:
            last = choose(range(len(plain)), logits)
        while active := [i for i, row in enumerate(rows) if counts[i] < row.draft_len]:
            spans = [
                ForwardSpan(
                    rows[i].kv_id or rows[i].state.request_id,
                    rows[i].committed_len + len(rows[i].lead) + counts[i] - 1,
                    (0,),  # in place of the token that is given
                    1,
                )
                for i in active
            ]
            given = last if len(active) == len(rows) else last.index_select(0, _index(active, device))
            try:
                found = self._forward(spans, given)
            except (BlocksExhausted, torch.OutOfMemoryError) as error:
                logger.warning("drafting stopped early: %s", error)
                break
            last = choose(active, found)
        self._chooser.take(steps)


def _index(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return upload(np.array(rows, np.int64), device)
