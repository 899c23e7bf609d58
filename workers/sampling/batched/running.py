"""Penalties, biases, minimum lengths and grammars of rows whose tokens stay on the device while they are drafted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from minedraft_workers.sampling.batched.adjusting import RowContext
from minedraft_workers.sampling.batched.guided import RunningGuides
from minedraft_workers.sampling.batched.transfer import upload
from minedraft_workers.sampling.processors import needs_adjusting
from minedraft_workers.sampling.vocab_columns import Columns


class RunningAdjustment:
    """Adjusts the logits of some rows step by step, by the tokens before the first step and those noted since.

    For the rows that ask for it, it keeps of every column whether its token was seen, and how often in the output.

    Args:
        contexts: what is before the first step of each row.
        device: of the logits.
    """

    def __init__(self, contexts: Sequence[RowContext], columns: Columns, device: torch.device) -> None:
        self._columns = columns
        self._guides = RunningGuides(contexts, columns)
        rows = [
            row
            for row, (state, drafts) in enumerate(contexts)
            if needs_adjusting(state, len(state.tokens) + len(drafts))
        ]
        self._contexts = [contexts[row] for row in rows]
        self._places = {row: place for place, row in enumerate(rows)}
        if not rows:
            return
        samplings = [state.spec.sampling for state, _ in self._contexts]
        params = [(s.repetition_penalty, s.frequency_penalty, s.presence_penalty) for s in samplings]
        self._params = upload(np.array(params, np.float32), device)
        self._is_seen = torch.zeros(len(rows), columns.num_columns, dtype=torch.bool, device=device)
        self._times = torch.zeros(self._is_seen.shape, device=device)
        self._bias = torch.zeros(self._is_seen.shape, device=device)
        seen, times, biased, values = [], [], [], []
        for place, (state, drafts) in enumerate(self._contexts):
            start = place * columns.num_columns
            ids, counts = state.seen_tokens(drafts)
            found, known = columns.locate(ids)
            seen.append(found + start)
            times.append(counts[known])
            found, known = columns.locate(state.bias_ids)
            biased.append(found + start)
            values.append(state.bias_values[known])
        at = upload(np.concatenate(seen), device)
        self._is_seen.view(-1).index_fill_(0, at, True)
        self._times.view(-1).index_copy_(0, at, upload(np.concatenate(times), device))
        at = upload(np.concatenate(biased), device)
        self._bias.view(-1).index_copy_(0, at, upload(np.concatenate(values), device))

    def adjust(self, logits: torch.Tensor, rows: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        """Return the logits of these rows with what they ask for; `logits` itself if none asks. Where one follows a
        grammar, the host waits for the tokens that were noted last.

        Args:
            logits: float32 [rows, columns]; not changed.
            rows: their numbers in `contexts`. counts: of each, the tokens noted since.
        """
        return self._guides.refuse(self._penalize(logits, rows, counts), rows)

    def _penalize(self, logits: torch.Tensor, rows: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        asking = [(index, self._places[row]) for index, row in enumerate(rows) if row in self._places]
        if not asking:
            return logits
        at, of = upload(np.array(asking, np.int64).T.copy(), logits.device)
        own, is_seen, times = logits[at], self._is_seen[of], self._times[of]
        repetition, frequency, presence = self._params[of].T[:, :, None]
        penalized = torch.where(own > 0, own / repetition, own * repetition) - (
            frequency * times + presence * (times > 0)
        )
        own = torch.where(is_seen, penalized, own) + self._bias[of]
        masked = self._masked([(place, counts[index]) for index, place in asking])
        own.view(-1).index_fill_(0, upload(masked, logits.device), -math.inf)
        return logits.clone(memory_format=torch.contiguous_format).index_copy_(0, at, own)

    def note(self, chosen: torch.Tensor, rows: Sequence[int]) -> None:
        """Take the columns, int64 [rows], that were chosen in these rows."""
        self._guides.note(chosen, rows)
        asking = [(index, self._places[row]) for index, row in enumerate(rows) if row in self._places]
        if not asking:
            return
        at, of = upload(np.array(asking, np.int64).T.copy(), chosen.device)
        flat = of * self._columns.num_columns + chosen[at]
        self._is_seen.view(-1).index_fill_(0, flat, True)
        self._times.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))

    def _masked(self, places: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the places in the rows that are adjusted now of stop tokens before a minimum length."""
        masked = [np.empty(0, np.int64)]
        for index, (place, count) in enumerate(places):
            state, drafts = self._contexts[place]
            length = len(state.tokens) + len(drafts) + count - state.spec.prompt_len
            if length < state.spec.sampling.min_new_tokens:
                masked.append(self._columns.locate(state.stop_ids)[0] + index * self._columns.num_columns)
        return np.concatenate(masked)
