"""From a row of logits to the distribution that a request asks for, for drafter and verifier.

The order is fixed: repetition penalty, frequency and presence penalty, logit bias, minimum length
mask, grammar mask, temperature, top-k, top-p, min-p; the conventions are those of transformers and vLLM. Each
position has its own context: the request's tokens plus the drafts before the position.

Truncations keep tokens by value: a token as probable as the last one kept is kept too, so the result
does not depend on the order of the columns. Each row is processed by itself, so its result is bit-equal
in every batch. The work grows with the parameters that the request sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minedraft.types import Acceptance
from minedraft_workers.sampling.row_search import SearchedRow
from minedraft_workers.sampling.vocab_columns import Columns
from minedraft_workers.sequence import SequenceState

_MIN_TEMPERATURE = 1e-30  # smaller ones are of no use in float32: the result is the argmax long before
_NUCLEUS_GUESS = 256


@dataclass(frozen=True, slots=True)
class ProcessedRow:
    """Logits after penalties, bias and mask, only of the tokens that truncation keeps.

    logits: float32 [num_kept]. columns: int64 [num_kept], ascending; None = every column is kept.
    peak: the largest logit; not finite if the row cannot be used (NaN, +Inf, or all -Inf).
    temperature: the divisor that is not yet applied to the logits.
    """

    logits: torch.Tensor
    columns: torch.Tensor | None
    peak: float
    temperature: float

    @property
    def is_usable(self) -> bool:
        return math.isfinite(self.peak)

    def weights(self) -> torch.Tensor:
        """Return unnormalised probabilities, float32 [num_kept]; the most probable token has weight 1."""
        return _weights(self.logits, self.peak, self.temperature)

    def column(self, index: int) -> int:
        """Return the column of the index-th kept token."""
        return index if self.columns is None else int(self.columns[index])


def usable_temperature(temperature: float) -> float:
    """Return the divisor of a request that samples."""
    return max(temperature, _MIN_TEMPERATURE)


def is_greedy(state: SequenceState) -> bool:
    """Whether the request takes the most probable token."""
    return state.spec.acceptance is Acceptance.GREEDY or state.spec.sampling.is_greedy


def needs_adjusting(state: SequenceState, position: int) -> bool:
    """Whether penalties, bias, the minimum length or a grammar change the logits at `position`."""
    sampling = state.spec.sampling
    return (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
        or len(state.bias_ids) > 0
        or position - state.spec.prompt_len < sampling.min_new_tokens
        or state.guide is not None
    )


def adjust(row: torch.Tensor, state: SequenceState, drafts: Sequence[int], columns: Columns) -> torch.Tensor:
    """Return the logits of the token after `drafts` with penalties, bias and the minimum length mask applied.

    Args:
        row: float32 [num_columns]; not changed.
        drafts: tokens between the request's known tokens and this position.

    Returns:
        A new row, or `row` itself if the request asks for none of these at this position.
    """
    if not needs_adjusting(state, len(state.tokens) + len(drafts)):
        return row
    row = row.clone()
    adjust_in_place(row, state, drafts, columns)
    return row


def adjust_in_place(row: torch.Tensor, state: SequenceState, drafts: Sequence[int], columns: Columns) -> None:
    """Apply penalties, bias, the minimum length mask and the grammar's to a row; arguments as for `adjust`.

    The changed columns are few: they are computed on the host, where a step over a few numbers costs a
    microsecond, a fifth of an operator of torch.
    """
    changes = find_changes(state, drafts, columns)
    if row.is_cpu:
        _change(row.numpy(), changes, np.float32(state.spec.sampling.repetition_penalty))
    else:
        touched = np.unique(np.concatenate([changes.seen, changes.bias, changes.masked]))
        index = torch.from_numpy(touched).to(row.device)
        values: npt.NDArray[np.float32] = row[index].cpu().numpy()
        seen, bias, masked = (np.searchsorted(touched, part) for part in (changes.seen, changes.bias, changes.masked))
        changes = changes._replace(seen=seen, bias=bias, masked=masked)
        _change(values, changes, np.float32(state.spec.sampling.repetition_penalty))
        row[index] = torch.from_numpy(values).to(row.device)
    refused = refused_by_grammar(state, drafts, columns)
    if refused is not None:
        row.masked_fill_(torch.from_numpy(refused).to(row.device), -math.inf)


class Changes(NamedTuple):
    """What penalties, bias and the minimum length change in a row, in this order.

    seen, bias, masked: int64, columns, each of them without repeats. seen: of tokens of the request, whose logits are
    divided or multiplied by the repetition penalty and then reduced by `penalties`. bias: to which `bias_values` are
    added. masked: -infinity. penalties, bias_values: float32.
    """

    seen: npt.NDArray[np.int64]
    penalties: npt.NDArray[np.float32]
    bias: npt.NDArray[np.int64]
    bias_values: npt.NDArray[np.float32]
    masked: npt.NDArray[np.int64]


def find_changes(state: SequenceState, drafts: Sequence[int], columns: Columns) -> Changes:
    """Return the changes of the row after `drafts`."""
    sampling = state.spec.sampling
    nowhere = np.empty(0, np.int64)
    seen, bias, masked = nowhere, nowhere, nowhere
    penalties = bias_values = np.empty(0, np.float32)
    if sampling.repetition_penalty != 1.0 or sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0:
        ids, counts = state.seen_tokens(drafts)
        seen, known = columns.locate(ids)
        times = counts[known]
        frequency, presence = np.float32(sampling.frequency_penalty), np.float32(sampling.presence_penalty)
        penalties = (frequency * times + presence * (times > 0)).astype(np.float32)
    if len(state.bias_ids):
        bias, known = columns.locate(state.bias_ids)
        bias_values = state.bias_values[known]
    if len(state.tokens) + len(drafts) - state.spec.prompt_len < sampling.min_new_tokens:
        masked, _ = columns.locate(state.stop_ids)
    return Changes(seen, penalties, bias, bias_values, masked)


def refused_by_grammar(state: SequenceState, drafts: Sequence[int], columns: Columns) -> npt.NDArray[np.bool_] | None:
    """Return the columns, bool [num_columns], that the request's grammar does not allow after `drafts`. None without a
    grammar, or if it does not allow these themselves: then the position is never reached."""
    if state.guide is None or not state.guide.move_to(state.tokens, drafts):
        return None
    return ~columns.of_ids(state.guide.allowed(columns.num_ids))


def _change(values: npt.NDArray[np.float32], changes: Changes, repetition_penalty: np.float32) -> None:
    """Change logits in place."""
    if len(changes.seen):
        logits = values[changes.seen]
        logits = np.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        values[changes.seen] = logits - changes.penalties
    if len(changes.bias):
        values[changes.bias] += changes.bias_values
    values[changes.masked] = -np.inf


def process(row: torch.Tensor, state: SequenceState, drafts: Sequence[int], columns: Columns) -> ProcessedRow:
    """Return the distribution of the token after `drafts` for a request that samples (temperature > 0).

    Args:
        row: float32 [num_columns], the model's logits; not changed.
        drafts: tokens between the request's known tokens and this position.
    """
    row = adjust(row, state, drafts, columns)
    sampling = state.spec.sampling
    temperature = usable_temperature(sampling.temperature)
    searched = SearchedRow(row)
    whole = ProcessedRow(row, None, searched.peak, temperature)
    if not whole.is_usable:
        return whole
    threshold = float("-inf")
    if 0 < sampling.top_k < columns.num_columns:
        threshold = float(searched.largest(sampling.top_k)[0][-1])
    if sampling.top_p < 1.0:
        threshold = _nucleus_threshold(searched, threshold, temperature, sampling.top_p)
    if sampling.min_p > 0.0:
        threshold = max(threshold, searched.peak + temperature * math.log(sampling.min_p))
    if threshold == float("-inf"):
        return whole
    kept = searched.at_least(threshold)
    return ProcessedRow(row[kept], kept, searched.peak, temperature)


def _nucleus_threshold(searched: SearchedRow, threshold: float, temperature: float, top_p: float) -> float:
    """Return the logit of the last token of the smallest set, among the tokens >= threshold, that has top_p of
    their probability."""
    if threshold > float("-inf"):
        logits = searched.row[searched.at_least(threshold)].sort(descending=True).values
        return _last_needed(logits, _weights(logits, searched.peak, temperature), top_p)[0]
    total = float(_weights(searched.row, searched.peak, temperature).sum(dtype=torch.float64))
    num_tried = _NUCLEUS_GUESS
    while True:
        logits = searched.largest(num_tried)[0]
        last, is_enough = _last_needed(logits, _weights(logits, searched.peak, temperature), top_p, total)
        if is_enough or len(logits) == len(searched.row):
            return last
        num_tried *= 8


def _last_needed(
    logits: torch.Tensor, weights: torch.Tensor, top_p: float, total: float | None = None
) -> tuple[float, bool]:
    """Return the first of `logits`, largest first, at which their weights reach top_p of `total` (of their own
    sum if None), or else the last one; and whether they reach it."""
    reached = weights.cumsum(0, dtype=torch.float64)
    goal = top_p * (float(reached[-1]) if total is None else total)
    last = int(torch.searchsorted(reached, goal))
    return float(logits[min(last, len(logits) - 1)]), last < len(logits)


def _weights(logits: torch.Tensor, peak: float, temperature: float) -> torch.Tensor:
    # Subtract the peak first: division by a tiny temperature then overflows to -inf, never to NaN.
    return (logits - peak).div_(temperature).exp_()
