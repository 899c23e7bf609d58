"""Grammars of rows whose tokens stay on the device while they are drafted.

What may come next follows from the token before, and a grammar is parsed on the host: so the host must read every
token of these rows, and no order of work spares it one wait a step. But the next forward does not need what the host
reads. It is queued before the host waits, so the device computes meanwhile, and waits for the mask alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from minedraft_workers.sampling.batched.adjusting import RowContext
from minedraft_workers.sampling.batched.transfer import Arrival, upload
from minedraft_workers.sampling.processors import refused_by_grammar
from minedraft_workers.sampling.vocab_columns import Columns


class RunningGuides:
    """Masks the logits of some rows step by step, by the tokens before the first step and those noted since.

    Args:
        contexts: what is before the first step of each row.
    """

    def __init__(self, contexts: Sequence[RowContext], columns: Columns) -> None:
        self._columns = columns
        self._states = {row: state for row, (state, _) in enumerate(contexts) if state.guide is not None}
        self._drafts = {row: list(contexts[row].drafts) for row in self._states}
        self._coming: tuple[list[int], Arrival] | None = None  # rows, and the columns chosen for them

    def refuse(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return the logits of these rows without what their grammars refuse; `logits` itself if there is none.

        Waits for the tokens that were noted last.

        Args:
            logits: float32 [rows, columns]; not changed.
        """
        self._take()
        masks = {}
        for index, row in enumerate(rows):
            if row in self._states:
                refused = refused_by_grammar(self._states[row], self._drafts[row], self._columns)
                if refused is not None:
                    masks[index] = refused
        if not masks:
            return logits
        at = upload(np.array(list(masks), np.int64), logits.device)
        own = logits[at].masked_fill_(upload(np.stack(list(masks.values())), logits.device), -math.inf)
        return logits.clone(memory_format=torch.contiguous_format).index_copy_(0, at, own)

    def note(self, chosen: torch.Tensor, rows: Sequence[int]) -> None:
        """Take the columns, int64 [rows], that were chosen in these rows, once they have arrived."""
        places = [index for index, row in enumerate(rows) if row in self._states]
        if places:
            at = upload(np.array(places, np.int64), chosen.device)
            self._coming = [rows[index] for index in places], Arrival(chosen[at])

    def _take(self) -> None:
        if self._coming is not None:
            rows, arrival = self._coming
            for row, column in zip(rows, arrival.read().tolist(), strict=True):
                self._drafts[row].append(self._columns.token_id(column))
            self._coming = None
