"""Choosing tokens from processed rows, and the drafter's choice for a batch.

GREEDY takes the most probable token, COUPLED the largest logit + noise with noise that the verifier
shares, REJECTION samples from the renormalised top-m of q and reports exactly what it sampled from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minedraft.types import Acceptance
from minedraft_workers.sampling.processors import ProcessedRow, adjust, is_greedy, needs_adjusting, process
from minedraft_workers.sampling.randomness import (
    GUMBEL_BOUND_OFFSET,
    GUMBEL_BOUND_UNIT,
    Purpose,
    gumbel,
    gumbel_bound,
    gumbel_of,
    seed_of_draft,
    uniform,
)
from minedraft_workers.sampling.row_search import SearchedRow, argmax_rows
from minedraft_workers.sampling.vocab_columns import Columns, columns_of
from minedraft_workers.sequence import SequenceState

DEFAULT_TOP_M = 32
_DRAW_BLOCK = 256


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A request whose next draft token is chosen.

    Attributes:
        position: absolute position (index in prompt + output) of the token to choose.
        drafts: tokens between the request's known tokens and this position: drafts of this round so far, after
            `num_ahead` tokens that are taken as known.
    """

    state: SequenceState
    position: int
    drafts: Sequence[int] = ()
    num_ahead: int = 0

    @property
    def index(self) -> int:
        """The number of drafts of this round so far."""
        return len(self.drafts) - self.num_ahead

    @property
    def takes_peak(self) -> bool:
        """Whether the request takes the most probable token of its raw logits."""
        return is_greedy(self.state) and not needs_adjusting(self.state, self.position)


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """One draft token for each of B requests.

    tokens: B token ids, None for a row with NaN or Inf. q_ids (int32 [B, m], -1 pads) and q_probs (float32
    [B, m]), both on the CPU: the distributions that the rows under REJECTION were sampled from; other rows,
    and rows without a token, are all padding. None if no row is under REJECTION.
    """

    tokens: list[int | None]
    q_ids: torch.Tensor | None
    q_probs: torch.Tensor | None


def choose_drafts(
    logits: torch.Tensor,
    rows: Sequence[ChoiceRow],
    draft_vocab_ids: torch.Tensor | None = None,
    top_m: int = DEFAULT_TOP_M,
) -> DraftChoice:
    """Return the next draft token of each request.

    Args:
        logits: float32 [B, n], the draft model's.
        rows: the B requests.
        draft_vocab_ids: integers [n], the token id of each column; None = column j is token j.
        top_m: number of tokens that q is truncated to under REJECTION.
    """
    columns = columns_of(logits.shape[-1], logits.device, draft_vocab_ids)
    choices = _choose_all(logits, rows, columns, top_m)
    tokens = [None if choice.column is None else columns.token_id(choice.column) for choice in choices]
    if not any(row.state.spec.acceptance is Acceptance.REJECTION for row in rows):
        return DraftChoice(tokens, None, None)
    return DraftChoice(tokens, *_pack_q(rows, choices, columns, top_m))


@dataclass(frozen=True, slots=True)
class _Choice:
    """The chosen column (None: the row has NaN or Inf) and, if it was sampled, the columns and
    probabilities that it was sampled from."""

    column: int | None
    kept: Sequence[int] = ()
    probs: torch.Tensor | None = None


def _choose_all(logits: torch.Tensor, rows: Sequence[ChoiceRow], columns: Columns, top_m: int) -> list[_Choice]:
    """Return a choice for each row; rows that take their peak are searched together."""
    choices = [_Choice(None)] * len(rows)
    plain = [index for index, row in enumerate(rows) if row.takes_peak]
    if plain:
        peaks, best = argmax_rows(logits if len(plain) == len(rows) else logits[plain])
        for index, peak, column in zip(plain, peaks, best, strict=True):
            choices[index] = _Choice(column if math.isfinite(peak) else None)
    for index in set(range(len(rows))).difference(plain):
        choices[index] = _choose(logits[index], rows[index], columns, top_m)
    return choices


def _choose(logits: torch.Tensor, row: ChoiceRow, columns: Columns, top_m: int) -> _Choice:
    state = row.state
    if is_greedy(state):
        searched = SearchedRow(adjust(logits, state, row.drafts, columns))
        return _Choice(searched.argmax() if math.isfinite(searched.peak) else None)
    processed = process(logits, state, row.drafts, columns)
    if not processed.is_usable:
        return _Choice(None)
    if state.spec.acceptance is Acceptance.COUPLED:
        return _Choice(coupled_choice(processed, columns, state.spec.seed, row.position))
    indices, probs = truncate_q(processed, top_m)
    kept = (indices if processed.columns is None else processed.columns[indices]).tolist()
    seed = seed_of_draft(state.spec.seed, row.index)
    return _Choice(kept[draw(probs, uniform(seed, row.position, Purpose.DRAFT))], kept, probs)


def _pack_q(
    rows: Sequence[ChoiceRow], choices: Sequence[_Choice], columns: Columns, top_m: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q_ids and q_probs of `DraftChoice`. For a token that was not sampled, q is 1 on the token."""
    q_ids = torch.full((len(rows), min(top_m, columns.num_columns)), -1, dtype=torch.int32)
    q_probs = torch.zeros(q_ids.shape)
    for index, (row, choice) in enumerate(zip(rows, choices, strict=True)):
        if row.state.spec.acceptance is not Acceptance.REJECTION or choice.column is None:
            continue
        if choice.probs is None:
            q_ids[index, 0], q_probs[index, 0] = columns.token_id(choice.column), 1.0
        else:
            q_ids[index, : len(choice.kept)] = torch.tensor([columns.token_id(column) for column in choice.kept])
            q_probs[index, : len(choice.kept)] = choice.probs
    return q_ids, q_probs


def truncate_q(processed: ProcessedRow, top_m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the top_m most probable tokens of q, renormalised.

    Returns:
        Indices into the processed row (int64 [m']) and probabilities (float32 [m'], sum 1 up to
        rounding), m' <= top_m, most probable first; of equally probable ones the first come first.
    """
    searched = SearchedRow(processed.logits)
    last = float(searched.largest(top_m)[0][-1])
    candidates = searched.at_least(last)
    kept = candidates[searched.row[candidates].sort(descending=True, stable=True).indices[:top_m]]
    weights = ((searched.row[kept].double() - processed.peak) / processed.temperature).exp()
    return kept, (weights / weights.sum()).float()


def draw(weights: torch.Tensor, u: float) -> int:
    """Return the index at `u` in [0, 1) of the cumulated weights: index i has probability
    weights[i] / sum(weights), in float64. An index of weight 0 is never returned.

    Args:
        weights: [n], finite, not negative, sum > 0.
    """
    if len(weights) <= _DRAW_BLOCK:
        return _find(weights, u)[0]
    # To cumulate block sums, then weights inside one block, takes a third of the time for a whole vocabulary.
    missing = -len(weights) % _DRAW_BLOCK
    padded = torch.nn.functional.pad(weights, (0, missing)) if missing else weights
    blocks = padded.view(-1, _DRAW_BLOCK)
    block, u_inside = _find(blocks.sum(dim=-1, dtype=torch.float64), u)
    return block * _DRAW_BLOCK + _find(blocks[block], u_inside)[0]


def _find(weights: torch.Tensor, u: float) -> tuple[int, float]:
    """Return the index at `u` of the cumulated weights, and the place of `u` within that index's share, 0..1."""
    reached = weights.cumsum(0, dtype=torch.float64)
    total = float(reached[-1])
    # A product rounded up to the total must still find the last index that has weight.
    goal = min(u * total, math.nextafter(total, 0.0))
    index = int(torch.searchsorted(reached, goal, right=True))
    before = float(reached[index - 1]) if index else 0.0
    return index, (goal - before) / (float(reached[index]) - before)


def coupled_choice(processed: ProcessedRow, columns: Columns, seed: int, position: int) -> int:
    """Return the column with the largest logit / temperature + Gumbel noise of (seed, position, token id): a
    draw from the row's distribution that is the same in every process with the same row."""
    temperature, logits = processed.temperature, processed.logits
    bits = columns.noise.bits(seed, position, processed.columns)
    if processed.columns is not None or logits.device.type != "cpu":
        return processed.column(int(_noisy(logits, bits, temperature).argmax()))
    # Two logarithms over a whole vocabulary cost more than all else. An upper bound of each score needs
    # none, and few tokens have a bound above the exact score of the likeliest winner.
    bounds = SearchedRow(torch.add(logits, gumbel_bound(bits), alpha=-temperature * GUMBEL_BOUND_UNIT))
    likeliest = bounds.argmax()
    score = float(logits[likeliest]) + temperature * gumbel_of(int(bits[likeliest]))
    rounding = 1e-3 * temperature + 1e-6 * (abs(processed.peak) + abs(score))
    candidates = bounds.at_least(score - temperature * GUMBEL_BOUND_OFFSET - rounding)
    if len(candidates) == 1:
        return likeliest
    return int(candidates[_noisy(logits[candidates], bits[candidates], temperature).argmax()])


def _noisy(logits: torch.Tensor, bits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return scores in units of a logit, float64: exact enough that every device finds the same winner."""
    return gumbel(bits).mul_(temperature).add_(logits)
