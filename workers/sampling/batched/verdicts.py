"""Acceptance for a batch, on the device: the host learns how many drafts are accepted and the token after them.

Every position is decided, those after the first rejection for nothing: that costs a GPU less than to wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from minedraft.errors import NumericError
from minedraft.messages import TokenLogprobs
from minedraft.types import Acceptance
from minedraft_workers.sampling.acceptance import Outcome, VerifyRow, takes_peaks, verify_peaks
from minedraft_workers.sampling.batched import law
from minedraft_workers.sampling.batched.adjusting import RowContext, adjust_rows
from minedraft_workers.sampling.batched.rules import RowRules, RulePlace, Subset
from minedraft_workers.sampling.batched.transfer import download, upload
from minedraft_workers.sampling.processors import is_greedy
from minedraft_workers.sampling.randomness import Purpose, TokenNoise
from minedraft_workers.sampling.vocab_columns import columns_of

_PURPOSES = (Purpose.ACCEPT, Purpose.TARGET)


def verify_together(logits: torch.Tensor, rows: Sequence[VerifyRow]) -> list[Outcome]:
    """Return the decision for each row, by one copy to the host; arguments as `acceptance.verify`."""
    if all(takes_peaks(row) for row in rows):
        return verify_peaks(logits, rows)
    columns = columns_of(logits.shape[1], logits.device)
    contexts = [RowContext(row.state, row.drafts[:index]) for row in rows for index in range(len(row.drafts) + 1)]
    places = [RulePlace(state, len(state.tokens) + len(drafts)) for state, drafts in contexts]
    rules = RowRules.make(places, columns.num_columns, logits.device, _PURPOSES)
    layout = _Layout.make(rows, logits.device)
    decided = _decide(adjust_rows(logits, contexts, columns), rules, layout, rows, columns.noise)
    asking = [index for index, row in enumerate(rows) if row.state.spec.sampling.logprobs is not None]
    if not asking:
        counts, tokens, usable = download(decided.accepted_lens, decided.tokens, decided.is_usable)
        return _to_outcomes(rows, counts, tokens, usable, {})
    most = min(max(rows[index].state.spec.sampling.logprobs or 0 for index in asking), columns.num_columns)
    counts, tokens, usable, *found = download(
        decided.accepted_lens, decided.tokens, decided.is_usable, *_logprobs_of(logits, rows, asking, decided, most)
    )
    return _to_outcomes(rows, counts, tokens, usable, _split_logprobs(rows, asking, found))


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Where the R rows of logits of B requests are; everything is on the device.

    first_rows: int64 [B]. rows: int64 [B, most drafts], of each draft; is_draft: bool, false for what fills up.
    drafts: int64 [R], the draft of each row, -1 in the row after a request's last draft.
    """

    first_rows: torch.Tensor
    rows: torch.Tensor
    is_draft: torch.Tensor
    drafts: torch.Tensor

    @classmethod
    def make(cls, rows: Sequence[VerifyRow], device: torch.device) -> _Layout:
        lens = np.array([len(row.drafts) for row in rows], np.int64)
        first, steps = np.cumsum(lens + 1) - lens - 1, np.arange(lens.max())
        drafts = np.array([draft for row in rows for draft in (*row.drafts, -1)], np.int64)
        grid = first[:, None] + np.minimum(steps, lens[:, None])
        sent = upload(np.concatenate([first, grid.ravel(), (steps < lens[:, None]).ravel(), drafts]), device)
        parts = torch.split(sent, [len(rows), grid.size, grid.size, len(drafts)])
        return cls(parts[0], parts[1].view(grid.shape), parts[2].view(grid.shape).bool(), parts[3])


@dataclass(frozen=True, slots=True, eq=False)
class _Decided:
    """Of each of B requests: accepted drafts and the token after them, int64 [B], and whether the logits that decided
    were usable, bool [B]."""

    accepted_lens: torch.Tensor
    tokens: torch.Tensor
    is_usable: torch.Tensor


def _decide(
    logits: torch.Tensor, rules: RowRules, layout: _Layout, rows: Sequence[VerifyRow], noise: TokenNoise
) -> _Decided:
    """Decide for adjusted logits; nothing waits for the device."""
    peaks, chosen = logits.max(dim=1)
    is_usable = peaks.isfinite()
    thresholds = law.find_thresholds(logits, peaks, rules)
    if rules.coupled is not None:
        take = rules.coupled.take
        scored = (take(logits), take(thresholds), take(rules.temperatures), take(rules.keys))
        rules.coupled.put(chosen, law.noisy_peaks(*scored, noise))
    is_accepted = chosen == layout.drafts
    sampled = None if rules.sampled is None else _Sampled(logits, peaks, thresholds, rules, rows)
    if sampled is not None:
        sampled.accept(is_accepted, layout.drafts)
    is_accepted &= is_usable
    accepted_lens = (is_accepted[layout.rows] & layout.is_draft).long().cumprod(dim=1).sum(dim=1)
    last_rows = layout.first_rows + accepted_lens
    tokens = chosen[last_rows]
    if sampled is not None:
        sampled.draw(tokens, last_rows)
    return _Decided(accepted_lens, tokens, is_usable[last_rows])


class _Sampled:
    """The requests that sample under REJECTION.

    Args:
        logits: float32 [R, columns], adjusted. peaks, thresholds: float32 [R]. rules: of all rows.
        rows: all requests.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        peaks: torch.Tensor,
        thresholds: torch.Tensor,
        rules: RowRules,
        rows: Sequence[VerifyRow],
    ) -> None:
        assert rules.sampled is not None, "made for rules with sampled rows"
        self._logits, self._peaks, self._thresholds, self._rules = logits, peaks, thresholds, rules
        self._positions: Subset = rules.sampled
        ids, probs, requests = _pack_q(rows)
        self._requests = upload(requests, logits.device)
        self._q_ids, self._q_probs = law.read_q_rows(
            upload(ids, logits.device), upload(probs, logits.device), logits.shape[1]
        )

    def accept(self, is_accepted: torch.Tensor, drafts: torch.Tensor) -> None:
        """Decide about the drafts, int64 [R], in `is_accepted`, bool [R]."""
        at = self._positions.index
        p = torch.cat([self._p_of(at[part], drafts) for part in law.part_slices(len(at), self._logits.shape[1])])
        q = (self._q_probs[at] * (self._q_ids[at] == drafts[at][:, None])).sum(dim=1)
        self._positions.put(is_accepted, self._rules.uniforms[0][at] < law.accept_probs(p, q))

    def draw(self, tokens: torch.Tensor, last_rows: torch.Tensor) -> None:
        """Put the token after the accepted drafts, whose row is in `last_rows`, into `tokens`, both int64 [B]."""
        at = last_rows[self._requests]
        for part in law.part_slices(len(at), self._logits.shape[1]):
            p = law.distributions(self._weigh(at[part]))
            # After the last draft there is no q, and the residual is p.
            rest = law.residual_rows(p, self._q_ids[at[part]], self._q_probs[at[part]])
            tokens.index_copy_(0, self._requests[part], law.draw_rows(rest, self._rules.uniforms[1][at[part]]))

    def _weigh(self, at: torch.Tensor) -> torch.Tensor:
        return law.weigh(self._logits[at], self._peaks[at], self._rules.temperatures[at], self._thresholds[at])

    def _p_of(self, at: torch.Tensor, drafts: torch.Tensor) -> torch.Tensor:
        """Return p of the drafts in these rows, float64; 0 for one that is no column."""
        weights, wanted = self._weigh(at), drafts[at]
        is_column = (wanted >= 0) & (wanted < weights.shape[1])
        of_draft = weights.gather(1, torch.where(is_column, wanted, 0)[:, None])[:, 0].double()
        return torch.where(is_column, of_draft / weights.sum(dim=1, dtype=torch.float64), 0.0)


def _pack_q(
    rows: Sequence[VerifyRow],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return q of every row of logits, int64 and float64 [R, m], -1 and 0 where there is none, and the numbers of the
    requests that sample under REJECTION. For a draft that was not sampled, q is 1 on it."""
    num_rows = sum(len(row.drafts) + 1 for row in rows)
    width = max((row.q_ids.shape[1] for row in rows if row.q_ids is not None), default=1)
    ids, probs = np.full((num_rows, max(width, 1)), -1, np.int64), np.zeros((num_rows, max(width, 1)))
    requests, first = [], 0
    for index, row in enumerate(rows):
        end = first + len(row.drafts)
        if _samples(row):
            requests.append(index)
            if row.q_ids is None or row.q_probs is None:
                ids[first:end, 0], probs[first:end, 0] = row.drafts, 1.0
            else:
                ids[first:end, : row.q_ids.shape[1]] = row.q_ids.numpy()
                probs[first:end, : row.q_ids.shape[1]] = row.q_probs.numpy()
        first = end + 1
    return ids, probs, np.array(requests, np.int64)


def _samples(row: VerifyRow) -> bool:
    return not is_greedy(row.state) and row.state.spec.acceptance is Acceptance.REJECTION


def _logprobs_of(
    logits: torch.Tensor, rows: Sequence[VerifyRow], asking: Sequence[int], decided: _Decided, most: int
) -> list[torch.Tensor]:
    """Return of each position of the requests that ask for it: the log-probability of its token, float64 [n], and the
    `most` likeliest tokens with theirs, [n, most]. They are of the model's own distribution, see `to_outcome`."""
    first = np.cumsum([0, *(len(row.drafts) + 1 for row in rows)])
    steps = [step for index in asking for step in range(len(rows[index].drafts) + 1)]
    owners = [index for index in asking for _ in range(len(rows[index].drafts) + 1)]
    drafts = [draft for index in asking for draft in (*rows[index].drafts, 0)]
    sent = np.array([first[owners] + steps, owners, steps, drafts], np.int64)
    at, owner, step, draft = upload(sent, logits.device)
    scores = logits[at]
    peaks = scores.amax(dim=1)
    totals = torch.cat(
        [
            (scores[part] - peaks[part, None]).exp_().sum(dim=1, dtype=torch.float64)
            for part in law.part_slices(*scores.shape)
        ]
    )
    totals = peaks.double() + totals.log()
    tokens = torch.where(step < decided.accepted_lens[owner], draft, decided.tokens[owner])
    # A draft that is no column is not accepted, so it is never asked for.
    of_token = scores.gather(1, tokens.clamp(0, scores.shape[1] - 1)[:, None])[:, 0].double() - totals
    values, ids = scores.topk(most)
    return [of_token, ids, values.double() - totals[:, None]]


def _split_logprobs(
    rows: Sequence[VerifyRow], asking: Sequence[int], found: Sequence[npt.NDArray[np.float64]]
) -> dict[int, list[TokenLogprobs]]:
    """Return the log-probabilities of each request that asks, of all of its positions."""
    of_token, ids, values = found
    logprobs: dict[int, list[TokenLogprobs]] = {}
    place = 0
    for index in asking:
        count = rows[index].state.spec.sampling.logprobs or 0
        end = place + len(rows[index].drafts) + 1
        logprobs[index] = [
            TokenLogprobs(float(of_token[i]), tuple(map(int, ids[i, :count])), tuple(values[i, :count].tolist()))
            for i in range(place, end)
        ]
        place = end
    return logprobs


def _to_outcomes(
    rows: Sequence[VerifyRow],
    counts: npt.NDArray[np.float64],
    tokens: npt.NDArray[np.float64],
    usable: npt.NDArray[np.float64],
    logprobs: dict[int, list[TokenLogprobs]],
) -> list[Outcome]:
    outcomes = []
    for index, row in enumerate(rows):
        if not usable[index]:
            outcomes.append(Outcome(0, (), error=NumericError.reason))
            continue
        count = int(counts[index])
        own = tuple(logprobs[index][: count + 1]) if index in logprobs else ()
        outcomes.append(Outcome(count, (*row.drafts[:count], int(tokens[index])), own))
    return outcomes
