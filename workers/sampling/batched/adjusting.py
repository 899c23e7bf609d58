"""Penalties, biases, minimum lengths and grammars of many rows at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from minedraft_workers.sampling.batched.transfer import upload
from minedraft_workers.sampling.processors import find_changes, needs_adjusting, refused_by_grammar
from minedraft_workers.sampling.vocab_columns import Columns
from minedraft_workers.sequence import SequenceState


class RowContext(NamedTuple):
    """What is before one row of logits: a request's tokens, and drafts after them."""

    state: SequenceState
    drafts: Sequence[int] = ()


def adjust_rows(logits: torch.Tensor, contexts: Sequence[RowContext], columns: Columns) -> torch.Tensor:
    """Return the logits with what each row's request asks for; `logits` itself if none asks. See `adjust`.

    What a row changes is found on the host, where its tokens are known; each kind of change is made in all rows at
    once.

    Args:
        logits: float32 [R, columns]; not changed.
    """
    rows = [
        row for row, (state, drafts) in enumerate(contexts) if needs_adjusting(state, len(state.tokens) + len(drafts))
    ]
    if not rows:
        return logits
    logits = logits.clone(memory_format=torch.contiguous_format)
    flat, device = logits.view(-1), logits.device
    seen, bias, masked = [], [], []
    for row in rows:
        state, drafts = contexts[row]
        changes, start = find_changes(state, drafts, columns), row * columns.num_columns
        repetition = np.full(len(changes.seen), state.spec.sampling.repetition_penalty, np.float32)
        seen.append((changes.seen + start, repetition, changes.penalties))
        bias.append((changes.bias + start, changes.bias_values))
        masked.append(changes.masked + start)
    places, repetitions, penalties = (upload(np.concatenate(part), device) for part in zip(*seen, strict=True))
    values = flat[places]
    flat[places] = torch.where(values > 0, values / repetitions, values * repetitions) - penalties
    places, additions = (upload(np.concatenate(part), device) for part in zip(*bias, strict=True))
    flat[places] += additions
    flat.index_fill_(0, upload(np.concatenate(masked), device), -math.inf)
    for row in rows:
        state, drafts = contexts[row]
        refused = refused_by_grammar(state, drafts, columns)
        if refused is not None:
            logits[row].masked_fill_(upload(refused, device), -math.inf)
    return logits
