"""Acceptance: the drafts that the target accepts, and the token that it adds.

GREEDY and COUPLED compare each draft with the target's own choice for the position. REJECTION
(Leviathan et al. 2023; Chen et al. 2023) accepts a draft with probability min(1, p / q) and replaces
the first rejected one by a draw from the residual max(p - q, 0), which makes the output law exactly p
for every q. Letters as in the papers: p is the target's distribution, q the drafter's.

Positions are decided in order, and positions after the first rejection are not computed: they cost
nothing, and a NaN in an unused row has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minedraft.errors import NumericError
from minedraft.messages import TokenLogprobs
from minedraft.types import Acceptance
from minedraft_workers.sampling.choose import coupled_choice, draw
from minedraft_workers.sampling.processors import ProcessedRow, adjust, is_greedy, needs_adjusting, process
from minedraft_workers.sampling.randomness import Purpose, uniform
from minedraft_workers.sampling.row_search import SearchedRow, argmax_rows
from minedraft_workers.sampling.vocab_columns import Columns, columns_of
from minedraft_workers.sequence import SequenceState


@dataclass(frozen=True, slots=True)
class VerifyRow:
    """A request's row of a verification.

    drafts: k token ids that follow `state.tokens`; k may be 0. q_ids (int32 [k, m], -1 pads) and q_probs
    (float32 [k, m]): the distribution that each draft was sampled from, used under REJECTION only; None
    means that the drafts were not sampled (q is 1 on the draft).
    """

    state: SequenceState
    drafts: Sequence[int] = ()
    q_ids: torch.Tensor | None = None
    q_probs: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The target's decision for one request: the accepted drafts and exactly one more token, with their
    log-probabilities if requested; no tokens if `error` (a reason of minedraft.errors) is set."""

    accepted_len: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class SparseQ:
    """q of one position: distinct token ids, int64 [m], and probabilities, float64 [m], that sum to 1; empty
    if the message holds no valid distribution."""

    ids: torch.Tensor
    probs: torch.Tensor

    def of(self, token: int) -> float:
        """Return q of one token."""
        return float(self.probs[self.ids == token].sum())


def verify(logits: torch.Tensor, rows: Sequence[VerifyRow]) -> list[Outcome]:
    """Return the decision for each row.

    Args:
        logits: float32 [sum of (len(drafts) + 1), vocab], the target's: for each request in order, the
            logits after its last known token and after each of its drafts.
    """
    num_logits = sum(len(row.drafts) + 1 for row in rows)
    assert len(logits) == num_logits, f"{len(logits)} logits rows for {num_logits} positions"
    if all(takes_peaks(row) for row in rows):
        return verify_peaks(logits, rows)
    columns = columns_of(logits.shape[-1], logits.device)
    outcomes = []
    start = 0
    for row in rows:
        end = start + len(row.drafts) + 1
        if takes_peaks(row):
            outcomes += verify_peaks(logits[start:end], [row])
        else:
            outcomes.append(_verify_row(logits[start:end], row, columns))
        start = end
    return outcomes


def accept_prob(p: float, q: float) -> float:
    """Return the probability of accepting a draft that has probability p under the target and q under the
    drafter. A draft with q = 0, which cannot have been drawn, is rejected."""
    return min(1.0, p / q) if q > 0.0 else 0.0


def residual(p: torch.Tensor, q: SparseQ) -> torch.Tensor:
    """Return max(p - q, 0), not normalised, the law of the token that replaces a rejected draft.

    Args:
        p: float64 [vocab], sums to 1; not changed.

    Returns:
        float64 [vocab] with a positive sum: p itself if rounding leaves nothing, which happens after a
        rejection only with a probability of about 1e-16.
    """
    rest = p.index_add(0, q.ids, q.probs, alpha=-1).clamp_min_(0.0)
    return rest if float(rest.sum()) > 0.0 else p


def distribution(processed: ProcessedRow, num_columns: int) -> torch.Tensor:
    """Return p of a processed row: float64 [num_columns], sum 1, zero for tokens that truncation dropped."""
    weights = processed.weights().double()
    weights /= weights.sum()
    if processed.columns is None:
        return weights
    return weights.new_zeros(num_columns).index_copy_(0, processed.columns, weights)


def read_q(ids: torch.Tensor, probs: torch.Tensor, vocab_size: int) -> SparseQ:
    """Return the distribution that a drafter sent for one position: pads, ids outside the vocabulary and
    invalid probabilities are dropped, the rest is normalised.

    Args:
        ids: integers [m]. probs: floats [m], in the same order.
    """
    probs = probs.double()
    usable = (ids >= 0) & (ids < vocab_size) & (probs > 0.0) & probs.isfinite()
    distinct, place = torch.unique(ids[usable].long(), return_inverse=True)
    summed = torch.zeros(len(distinct), dtype=torch.float64, device=probs.device).index_add_(0, place, probs[usable])
    return SparseQ(distinct, summed / summed.sum())


def to_outcome(logits: torch.Tensor, first_row: int, row: VerifyRow, tokens: Sequence[int]) -> Outcome:
    """Return the outcome of a row that has these tokens, with log-probabilities if it asks for them.

    Args:
        logits: as for `verify`; the row's begin at `first_row`.
    """
    num_alternatives = row.state.spec.sampling.logprobs
    if num_alternatives is None:
        return Outcome(len(tokens) - 1, tuple(tokens))
    own = logits[first_row : first_row + len(tokens)]
    logprobs = [_logprobs(scores, token, num_alternatives) for scores, token in zip(own, tokens, strict=True)]
    return Outcome(len(tokens) - 1, tuple(tokens), tuple(logprobs))


def takes_peaks(row: VerifyRow) -> bool:
    """Whether a row takes the argmax of its raw logits, and nothing else is asked for."""
    state = row.state
    return is_greedy(state) and state.spec.sampling.logprobs is None and not needs_adjusting(state, len(state.tokens))


def verify_peaks(logits: torch.Tensor, rows: Sequence[VerifyRow]) -> list[Outcome]:
    """Return the decisions for rows that take the argmax of the raw logits: one search, one copy to the host."""
    peaks, best = argmax_rows(logits)
    outcomes = []
    start = 0
    for row in rows:
        tokens: list[int] = []
        error = ""
        for index, draft in enumerate((*row.drafts, None), start=start):
            if not math.isfinite(peaks[index]):
                error = NumericError.reason
                break
            tokens.append(best[index])
            if tokens[-1] != draft:
                break
        outcomes.append(Outcome(0, (), error=error) if error else Outcome(len(tokens) - 1, tuple(tokens)))
        start += len(row.drafts) + 1
    return outcomes


def _verify_row(logits: torch.Tensor, row: VerifyRow, columns: Columns) -> Outcome:
    tokens: list[int] = []
    for accepted_len in range(len(row.drafts) + 1):
        token = _choose(logits[accepted_len], row, accepted_len, columns)
        if token is None:
            return Outcome(0, (), error=NumericError.reason)
        tokens.append(token)
        if accepted_len == len(row.drafts) or token != row.drafts[accepted_len]:
            break
    return to_outcome(logits, 0, row, tokens)


def _choose(logits: torch.Tensor, row: VerifyRow, index: int, columns: Columns) -> int | None:
    """Return the token at the index-th position after the known ones, which equals the draft there if and only
    if the draft is accepted; None if the logits are not usable."""
    state, drafts = row.state, row.drafts[:index]
    if is_greedy(state):
        searched = SearchedRow(adjust(logits, state, drafts, columns))
        return searched.argmax() if math.isfinite(searched.peak) else None
    processed = process(logits, state, drafts, columns)
    if not processed.is_usable:
        return None
    position = len(state.tokens) + index
    if state.spec.acceptance is Acceptance.COUPLED:
        return coupled_choice(processed, columns, state.spec.seed, position)
    u_target = uniform(state.spec.seed, position, Purpose.TARGET)
    if index == len(row.drafts):
        return processed.column(draw(processed.weights(), u_target))
    p = distribution(processed, columns.num_columns)
    draft = row.drafts[index]
    q = _q_at(row, index, p)
    p_draft = float(p[draft]) if 0 <= draft < len(p) else 0.0
    if uniform(state.spec.seed, position, Purpose.ACCEPT) < accept_prob(p_draft, q.of(draft)):
        return draft
    # A rejected draft has p < q, so its residual is zero and another token is drawn: the caller can tell
    # acceptance by equality. Only a q without the draft breaks this.
    return draw(residual(p, q), u_target)


def _q_at(row: VerifyRow, index: int, p: torch.Tensor) -> SparseQ:
    if row.q_ids is None or row.q_probs is None:
        ids, probs = torch.tensor([row.drafts[index]]), torch.ones(1)
    else:
        ids, probs = row.q_ids[index], row.q_probs[index]
    return read_q(ids.to(p.device), probs.to(p.device), len(p))


def _logprobs(logits: torch.Tensor, token: int, num_alternatives: int) -> TokenLogprobs:
    """Return log-probabilities of the model's own distribution: no penalty, bias, temperature or truncation."""
    searched = SearchedRow(logits)
    log_total = searched.peak + math.log(float((logits - searched.peak).exp_().sum(dtype=torch.float64)))
    if num_alternatives == 0:
        return TokenLogprobs(float(logits[token]) - log_total)
    values, likely = searched.largest(num_alternatives)
    return TokenLogprobs(
        float(logits[token]) - log_total,
        tuple(likely.tolist()),
        tuple((values.double() - log_total).tolist()),
    )
