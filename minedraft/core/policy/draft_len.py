"""How many tokens to draft, by what drafts cost and bring at present."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minedraft.core import events
from minedraft.core.policy.base import DraftOffer
from minedraft.core.policy.forecast.acceptance import chain
from minedraft.core.policy.forecast.conditions import Condition
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.forecast.goodput import best_depth, goodput_at
from minedraft.core.request import Request
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import Batch, Role

_FIRST_DEPTH = 3  # while nothing is known
_FIRST_ROWS = 32  # of a verify, which the first drafts may fill
_ROUNDS_PER_DECISION = 8
_DECISION_S = 0.15  # after which a decision is made again, however few its rounds were
_ROUNDS_PER_TRIAL = 20  # after so many, one has another depth than the best: deeper and shallower by turns
_MOST_DOUBLINGS = 2  # of that number, one for each pair of trials that changed nothing
_GAIN = 1.01  # another depth must promise this much more than the present one
_GAIN_OF_ZERO = 1.02  # the same from or to depth 0, where the drafter falls behind
_ROUNDS_TO_REPAY = 500  # in which the gain of drafting again must make good for the time to catch up
_PROBE_SHARE = 0.01  # of the time, spent at most on drafts that are expected not to pay
_PROBE_ROUNDS = 8  # drafted rounds of a probe
_PROBE_DEPTH = 2
_LONGEST_ROUND_S = 0.5  # more time between two rounds is idle time
_OPTIMISM = 0.2  # a probe needs that drafts would pay if they were accepted so much more often


@dataclass(slots=True)
class _Plan:
    """The decision for one batch.

    depth: most drafts of a request. rounds_left: until the next decision. trial: added to the depth in this round.
    num_trials: since the depth changed. to_trial: rounds until the next one.
    members: requests asked for in this round, with their lengths; sample: those of the last one.
    is_hopeful: whether drafts may pay although the depth is 0.
    """

    depth: int = _FIRST_DEPTH
    least_survival: float = 0.0
    batch_size: int = 0
    rounds_left: int = 0
    decided_s: float = 0.0
    is_hopeful: bool = False
    trial: int = 0
    num_trials: int = 0
    to_trial: int = _ROUNDS_PER_TRIAL
    members: dict[int, int] = field(default_factory=dict)
    sample: dict[int, int] = field(default_factory=dict)


class AutoDraftLen:
    """Asks for the number of drafts that is expected to give the most tokens per second, 0 included.

    Every few rounds it chooses a depth for a batch from the costs of its rounds and the acceptance of its requests;
    within it, each request gets the drafts that are likely enough to be worth a row of the verify. Now and then a
    round is deeper or shallower, to know what that costs and brings. While nothing is drafted, a new request
    drafts a little now and then, for at most `_PROBE_SHARE` of the time. While a client sets the draft length, it
    gets that one.

    Args:
        experience: learns from the same events, before this policy does.
    """

    def __init__(self, experience: Experience) -> None:
        self._costs = experience.costs
        self._acceptance = experience.acceptance
        self._plans = {batch: _Plan() for batch in Batch}
        self._is_fixed = False
        self._num_active = 1
        self._credit_s = 0.0  # time that probes may take
        self._probed: int | None = None  # the request that drafts although drafts do not pay
        self._probe_rounds = 0
        self._last_s = 0.0  # when the last round ended

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        if self._is_fixed:
            return max_draft_len
        self._acceptance.look_at(request)
        plan = self._plans[request.batch or Batch.A]
        plan.members[request.id] = len(request.tokens)
        if not self._costs.is_known or not self._costs.knows_drafts:
            return min(_FIRST_DEPTH, max(_FIRST_ROWS // batch_size - 1, 1), max_draft_len)
        is_old = plan.rounds_left <= 0 or self._last_s - plan.decided_s >= _DECISION_S
        if is_old or plan.batch_size != batch_size:
            self._decide(plan, batch_size)
        if not plan.depth:
            return min(_PROBE_DEPTH, max_draft_len) if self._is_probed(request, plan) else 0
        depth = min(max(plan.depth + plan.trial, 1), max_draft_len)
        survival = self._acceptance.survival(request.id, self._acceptance.rates(depth))
        least = plan.least_survival if plan.trial <= 0 else 0.0
        return next((index for index, chance in enumerate(survival) if chance < least), depth)

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        return [offer.num_drafts for offer in offers]

    def observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.RoundPlanned():
                self._begin_round(self._plans[event.batch])
            case events.RoundCommitted():
                self._num_active = event.num_active
                self._credit_s += _PROBE_SHARE * min(now_s - self._last_s, _LONGEST_ROUND_S)
                self._last_s = now_s
            case events.RequestEnded() if event.request_id == self._probed:
                self._probed = None
            case events.WorkerLeft() if event.role is Role.DRAFTER:
                self._probed = None
            case events.ModeChanged():
                self._is_fixed = event.is_lent
                for plan in self._plans.values():
                    plan.batch_size = 0  # decide anew

    def _begin_round(self, plan: _Plan) -> None:
        plan.rounds_left -= 1
        plan.sample, plan.members = plan.members, {}
        plan.trial = 0
        plan.to_trial -= 1
        if plan.to_trial <= 0:
            plan.trial = -1 if plan.num_trials % 2 else 1
            plan.num_trials += 1
            plan.to_trial = _ROUNDS_PER_TRIAL << min(plan.num_trials // 2, _MOST_DOUBLINGS)
        if self._probed is not None and self._probe_rounds <= 0:
            self._probed = None
        self._probe_rounds -= 1

    def _decide(self, plan: _Plan, batch_size: int) -> None:
        costs, acceptance, way = self._costs, self._acceptance, self._costs.way
        num_in_flight = batch_size * min(way.mode.num_batches, max(self._num_active, 1))
        sample = plan.sample or plan.members
        rates = acceptance.rates(min(costs.next_depth, MAX_DRAFT_LEN))
        survivals = [acceptance.survival(known, rates) for known in sample]
        best = best_depth(costs, way, num_in_flight, survivals)
        if not best.depth and acceptance.doubt:  # a few drafts that were refused are no reason to make none
            hoped = acceptance.rates(len(rates), acceptance.doubt)
            doubted = [acceptance.survival(known, hoped) for known in sample]
            best = max(best, best_depth(costs, way, num_in_flight, doubted), key=lambda goodput: goodput.tokens_per_s)
        depth = plan.depth
        if best.depth != depth:
            present = goodput_at(costs, way, num_in_flight, survivals, depth, best.least_survival)
            gain = _GAIN if best.depth and depth else _GAIN_OF_ZERO
            if not depth:
                repay_s = _ROUNDS_TO_REPAY * costs.period_s(way, num_in_flight, 0, 0)
                gain += costs.catch_up_s(sum(sample.values())) / repay_s
            if best.tokens_per_s < gain * present.tokens_per_s:
                best = present
        if best.depth != depth:
            plan.num_trials, plan.to_trial = 0, _ROUNDS_PER_TRIAL
        plan.depth, plan.least_survival, plan.batch_size = best.depth, best.least_survival, batch_size
        plan.rounds_left, plan.decided_s = _ROUNDS_PER_DECISION, self._last_s
        if not best.depth:
            hope = chain(acceptance.rates(MAX_DRAFT_LEN, _OPTIMISM))
            plan.is_hopeful = best_depth(costs, way, num_in_flight, [hope]).depth > 0

    def _is_probed(self, request: Request, plan: _Plan) -> bool:
        """Return whether a request drafts to see whether drafts would pay by now; at most one does."""
        if self._probed is None and plan.is_hopeful and request.remaining_len > 2 * _PROBE_ROUNDS:
            draft_s = self._costs.draft_s(Condition.ALONE, _PROBE_DEPTH, 1)
            cost_s = _PROBE_ROUNDS * draft_s + self._costs.catch_up_s(len(request.tokens))
            if self._credit_s > cost_s * (1 if request.output_len == 0 else 2):
                self._credit_s, self._probed, self._probe_rounds = 0.0, request.id, _PROBE_ROUNDS
        return request.id == self._probed
