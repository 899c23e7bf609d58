"""Step time and throughput of each mode, at requests in flight or per batch, and when overlapping can win.

In `sd` a round is a draft and then a verify of all requests. In `minedraft` the requests are halved; while one half is
verified the other is drafted, so that both halves have a round in twice the longer time, or in the time that a half
takes for its own draft, verify and messages, if that is longer. At equal requests *per batch* that is up to twice as
fast. When it wins at equal requests *in flight* is told by `minedraft.theory.winning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minedraft.theory.costs import Costs, tokens_per_round
from minedraft.types import Mode


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a mode gives. Times in seconds.

    Attributes:
        num_in_flight: requests over all batches.
        draft_s, verify_s: of one batch's round.
        period_s: in which every request in flight has one round: the time between a request's rounds.
        tokens_per_s: of all requests in flight, while they decode.
    """

    mode: Mode
    num_in_flight: float
    draft_len: int
    draft_s: float
    verify_s: float
    period_s: float
    tokens_per_s: float

    @property
    def step_s(self) -> float:
        """From one committed round to the next."""
        return self.period_s / self.mode.num_batches

    @property
    def verifier_busy(self) -> float:
        """Share of the time that the verifier works."""
        return self.verify_s * self.mode.num_batches / self.period_s

    @property
    def drafter_busy(self) -> float:
        """Share of the time that the drafter works."""
        return self.draft_s * self.mode.num_batches / self.period_s

    @property
    def bound(self) -> str:
        """What the speed depends on most: "drafting", "verifying" or "both in turn"."""
        if self.mode is Mode.SD:
            return "both in turn"
        return "drafting" if self.draft_s > self.verify_s else "verifying"


def predict_mode(
    costs: Costs,
    mode: Mode,
    num_in_flight: float,
    rates: Sequence[float] = (),
    hit_rate: float | None = None,
    context_len: float = 0.0,
) -> Prediction:
    """Return what a mode gives with this many requests in flight.

    Args:
        rates: acceptance of draft 1, 2 ... once those before it are accepted; as many as there are drafts. None in ar.
        hit_rate: in pearl, the share of rounds whose drafts were ready when the verify before ended; default: that of
            a single request with one prepared way, all drafts accepted and the token after them guessed, too. What
            pearl gives to several requests, some of which have their drafts ready, is left to the simulator.
        context_len: cached tokens of each request, beyond those in whose presence the costs were measured.
    """
    rates = () if mode is Mode.AR else rates
    draft_len, per_batch = len(rates), num_in_flight / mode.num_batches
    draft_s, verify_s = (cost(per_batch, draft_len, context_len) for cost in (costs.draft_s, costs.verify_s))
    alone_s = draft_s
    if mode in (Mode.MINEDRAFT, Mode.PEARL):
        draft_s, verify_s = costs.overlapped(per_batch, draft_len, context_len)
    if mode is Mode.AR and costs.verify_wide is not None:
        verify_s = costs.verify_wide.at(num_in_flight) + costs.verify_kv_s * num_in_flight * context_len
    turns_s, queued_s = costs.turns_overhead.at(per_batch), costs.queued_overhead.at(per_batch)
    longer_s = max(draft_s, verify_s) + queued_s
    if mode is Mode.MINEDRAFT:
        period_s = max(2 * longer_s, draft_s + verify_s + turns_s)
    elif mode is Mode.PEARL:
        hit_rate = _all_guessed(rates) if hit_rate is None else hit_rate
        period_s = longer_s + (1 - hit_rate) * alone_s
    else:
        period_s = draft_s + verify_s + (turns_s if mode is Mode.SD else queued_s)
    tokens_per_s = num_in_flight * tokens_per_round(rates) / period_s
    return Prediction(mode, num_in_flight, draft_len, draft_s, verify_s, period_s, tokens_per_s)


def best_draft_len(
    costs: Costs, mode: Mode, num_in_flight: float, rates: Sequence[float], hit_rate: float | None = None
) -> Prediction:
    """Return the prediction with the number of drafts, from 1 to the number of `rates`, that gives the most."""
    lens = range(1, len(rates) + 1) if mode.has_drafts else (0,)
    predictions = [predict_mode(costs, mode, num_in_flight, rates[:k], hit_rate) for k in lens]
    return max(predictions, key=lambda prediction: prediction.tokens_per_s)


def overlap_gain(costs: Costs, num_in_flight: float, draft_len: int, context_len: float = 0.0) -> float:
    """Return how much faster `minedraft` is than `sd` with as many requests in flight and as many drafts.

    Above 1 if and only if 2 max(k d(n/2), V(n/2)) < k d(n) + V(n), overheads and collisions aside.
    """
    rates = [0.0] * draft_len  # both have the same tokens per round, whatever it is
    modes = (Mode.SD, Mode.MINEDRAFT)
    turns, overlapped = (predict_mode(costs, m, num_in_flight, rates, context_len=context_len) for m in modes)
    return turns.period_s / overlapped.period_s


def same_batch_gain(costs: Costs, max_batch_size: float, draft_len: int) -> float:
    """Return how much faster `minedraft` with two batches of m is than `sd` with one: the paper's comparison.

    It has twice the requests in flight. At most 2 (without collisions), where drafting takes as long as verifying.
    """
    rates = [0.0] * draft_len
    turns = predict_mode(costs, Mode.SD, max_batch_size, rates)
    overlapped = predict_mode(costs, Mode.MINEDRAFT, 2 * max_batch_size, rates)
    return overlapped.tokens_per_s / turns.tokens_per_s


def overlap_bound(draft_s: float, verify_s: float) -> float:
    """Return the largest gain of overlapping over taking turns with these times: (t_d + t_v) / max(t_d, t_v)."""
    return (draft_s + verify_s) / max(draft_s, verify_s, 1e-12)


def _all_guessed(rates: Sequence[float]) -> float:
    product = rates[-1] if rates else 1.0
    for rate in rates:
        product *= rate
    return product
