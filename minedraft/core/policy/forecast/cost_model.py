"""What rounds cost on this machine: learnt from events, asked before a decision. Pure.

Costs are kept apart by the *condition* they were measured in: two workers at work at once share memory bandwidth,
and a worker with more cores is faster. A condition that was never met is expected to cost what another one does,
times a ratio: the measured one of the nearest size, else one that is expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from math import ceil
from typing import TypeAlias

from minedraft.core import events
from minedraft.core.policy.cores import worker_cores
from minedraft.core.policy.forecast.ahead_hits import AheadHits
from minedraft.core.policy.forecast.conditions import EXPECTED, HOPED, Condition, Way
from minedraft.core.policy.forecast.cost_curve import CostCurve
from minedraft.core.policy.forecast.prompt_costs import PromptCosts
from minedraft.messages import Timing, WorkerInfo
from minedraft.types import BRANCHES, Batch, Mode, Role

_SLOPE = 0.02  # expected cost of one more row, as a part of the cost of one row, while nothing tells
_OVERHEAD_S = 0.0003  # expected time of the scheduler and of the wire in a round, and what a request adds to it
_OVERHEAD_PER_REQUEST_S = 0.00003
_LEAST_STEP = 0.75  # of what a draft has cost so far, that one more is taken to cost
_DEEPER = 1.5  # drafts are expected to be worth what they cost up to so many times the deepest that were measured
_LEAST_DEEP = 4
_BOTH = Role.VERIFIER, Role.DRAFTER
_Flow: TypeAlias = tuple[int, bool, bool]
"""How rounds follow each other: the number of batches, whether the drafter runs ahead, and whether there are drafts."""

_MOST_PERIODS = 4  # a round that took this many times its expected time measures something else


@dataclass(slots=True)
class _OpenRound:
    """A planned round that has not ended, with the times of its commands in seconds; that of a verify for each step."""

    plan: events.RoundPlanned
    draft_s: float = 0.0
    verify_s: float = 0.0
    prefill_s: float = 0.0
    ahead_s: float = 0.0
    num_steps: int = 1


class CostModel:
    """Learns from events (see `minedraft.core.events.Observer`) and says what a round will take.

    Args:
        num_branches: how many branches of a request are prepared where the drafter runs ahead.

    Attributes:
        way: how rounds run at present.
    """

    def __init__(self, num_branches: int = BRANCHES) -> None:
        self.way = Way(Mode.SD, num_branches=num_branches)
        self._workers: dict[Role, WorkerInfo] = {}
        self._verify = {condition: CostCurve() for condition in Condition}
        self._draft: dict[Condition, dict[int, tuple[float, CostCurve]]] = {condition: {} for condition in Condition}
        self._deepest = 0  # drafts of one request that were measured
        self._overhead: dict[_Flow, CostCurve] = {}
        self._hits = AheadHits()
        self._open: dict[int, _OpenRound] = {}
        self._last: dict[Batch, tuple[float, _OpenRound]] = {}  # end and times of each batch's last round
        self._prompts = PromptCosts()
        self._ratios: Mapping[Condition, float] = EXPECTED  # of conditions that were never met
        self._is_disturbed = set(Batch)  # batches whose present round has waited, or was beside a prefill

    # What is learnt

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event."""
        match event:
            case events.RoundPlanned():
                self._open[event.number] = _OpenRound(event)
            case events.Drafted() if event.number in self._open:
                if event.is_ahead:
                    self._open[event.number].ahead_s = _busy_s(event.timing)
                elif event.is_prefill:
                    self._open[event.number].prefill_s = _busy_s(event.timing)
                else:
                    self._open[event.number].draft_s = _busy_s(event.timing)
            case events.Verified() if event.number in self._open:
                verified = self._open[event.number]
                verified.verify_s, verified.num_steps = _busy_s(event.timing) / event.num_steps, event.num_steps
            case events.RoundCommitted():
                if (ended := self._open.pop(event.number, None)) is not None:
                    self._learn(event, ended, now_s)
            case events.RoundAbandoned():
                self._open.pop(event.number, None)
                self._is_disturbed.add(event.batch)
            case events.LaneIdle():
                self._is_disturbed.add(event.batch)
            case events.RequestQueued():
                self._prompts.queued(event.request_id, event.prompt_len)
            case events.RequestEnded():
                self._prompts.ended(event.request_id, event.output_len)
            case events.ModeChanged():
                self._run(replace(self.way, mode=event.mode))
            case events.WorkerJoined():
                self._workers[event.info.role] = event.info
                self.way = replace(self.way, wide=self.way.wide - {event.info.role})
            case events.CoresChanged() if event.role in self._workers:
                is_wide = len(event.cores) > len(self._workers[event.role].cores)
                wide = self.way.wide - {event.role} | ({event.role} if is_wide else set())
                self._run(replace(self.way, wide=frozenset(wide)))

    def _run(self, way: Way) -> None:
        """Begin to run in another way; what is open now measures neither."""
        self.way = way
        self._open.clear()
        self._is_disturbed.update(Batch)

    def _learn(self, event: events.RoundCommitted, ended: _OpenRound, now_s: float) -> None:
        plan, num_verified = ended.plan, sum([drafts for drafts, _ in event.accepted])
        for num_drafts, accepted_len in event.accepted:
            self._hits.judge(num_drafts, accepted_len)
        condition = self.way.condition(event.num_active)
        if self.way.mode.runs_ahead and not ended.ahead_s:
            condition = Condition.ALONE
        if event.is_prefill:
            self._learn_prefill(ended, condition, event.num_requests + num_verified)
            self._is_disturbed.update(Batch)
        elif ended.verify_s:
            self._verify[condition].add(event.num_requests + num_verified, ended.verify_s)
            if ended.draft_s and plan.depth:
                drafter_is = self.way.condition(event.num_active, Role.DRAFTER)
                self._learn_draft(drafter_is, plan.depth, plan.num_drafts / plan.depth, ended.draft_s)
            if ended.ahead_s:
                self._learn_ahead(event, ended)
            if event.batch not in self._is_disturbed:
                self._learn_overhead(event, ended, (now_s - self._last[event.batch][0]) / ended.num_steps)
        if not event.is_prefill:
            self._is_disturbed.discard(event.batch)
        self._last[event.batch] = now_s, ended

    def _learn_prefill(self, ended: _OpenRound, condition: Condition, num_rows: int) -> None:
        """Learn from a round in which the verifier, the drafter or both cached prompt tokens."""
        plan, (verifier, drafter) = ended.plan, (self.way.prompt_condition(role) for role in _BOTH)
        if plan.num_prompt_tokens and ended.verify_s:
            rest_s = self.verify_s(condition, num_rows) if self._verify[condition].is_known else None
            self._prompts.verified(verifier, plan.num_prompt_tokens, ended.verify_s, rest_s)
        if plan.num_drafter_tokens and ended.prefill_s:
            self._prompts.drafted(drafter, plan.num_drafter_tokens, ended.prefill_s)

    def _learn_draft(self, condition: Condition, depth: int, num_rows: float, seconds: float) -> None:
        self._deepest = max(self._deepest, depth)
        curves = self._draft[condition]
        bucket = round(2 * max(num_rows, 1.0) ** 0.5)
        mean_rows, curve = curves.setdefault(bucket, (num_rows, CostCurve()))
        curves[bucket] = mean_rows + 0.1 * (num_rows - mean_rows), curve
        curve.add(depth, seconds)

    def _learn_ahead(self, event: events.RoundCommitted, ended: _OpenRound) -> None:
        """Learn from a run ahead: a forward that guesses the token after the drafts, and those of the branches."""
        plan = ended.plan
        num_rows = plan.num_branches * event.num_requests
        self._learn_draft(Condition.OVERLAPPED, plan.ahead_depth + 1, num_rows, ended.ahead_s)
        for num_drafts, came_true in event.runs:
            self._hits.add(num_drafts, plan.num_branches, came_true)

    def _learn_overhead(self, event: events.RoundCommitted, ended: _OpenRound, period_s: float) -> None:
        """Learn the part of a batch's period that its commands do not explain."""
        is_overlapped = self.way.num_batches(event.num_active) > 1
        busy_s = ended.draft_s + max(ended.verify_s, ended.ahead_s)
        has_drafts = ended.draft_s > 0 or ended.ahead_s > 0
        if not has_drafts and self._last[event.batch][1].draft_s:
            return  # between rounds without drafts there is no pause, but there was one here
        if is_overlapped:
            if event.batch.other not in self._last:
                return
            other = self._last[event.batch.other][1]
            busy_s = max(busy_s, ended.draft_s + other.draft_s, ended.verify_s + other.verify_s)
        if period_s > _MOST_PERIODS * busy_s:
            return
        flow = _flow(self.way, event.num_active, has_drafts)
        self._overhead.setdefault(flow, CostCurve()).add(event.num_requests, max(period_s - busy_s, 1e-6))

    # What is asked

    @property
    def is_known(self) -> bool:
        """Whether a verify was measured."""
        return any(curve.is_known for curve in self._verify.values())

    @property
    def knows_drafts(self) -> bool:
        """Whether a draft was measured."""
        return any(self._draft.values())

    @property
    def next_depth(self) -> int:
        """The deepest drafts of which a forecast is more than a guess: costs and acceptance are known step by step."""
        return max(int(_DEEPER * self._deepest), self._deepest + 1, _LEAST_DEEP)

    def covers(self, way: Way, num_in_flight: int, num_drafts: float) -> bool:
        """Whether verifies of about this size were measured in this way; the arguments as for `period_s`."""
        num_rows = (num_in_flight + num_drafts) / way.num_batches(num_in_flight)
        return self._verify[way.condition(num_in_flight)].covers(num_rows)

    def hopeful(self) -> CostModel:
        """Return a view of these costs to which conditions that were never met look as good as they may be."""
        view = copy(self)
        view._ratios = HOPED
        return view

    def way_of(self, mode: Mode) -> Way:
        """Return how rounds would run in a mode."""
        infos = self._workers.values()
        wide = frozenset(info.role for info in infos if len(worker_cores(mode, info)) > len(info.cores))
        return Way(mode, wide, self.way.num_branches)

    def prompt_s(self, way: Way, has_drafts: bool) -> float:
        """Return the seconds that prompts take for each output token, of late; both workers cache them at once."""
        token_s = self._prompts.verify_s(way.prompt_condition(Role.VERIFIER), self._ratios)
        if has_drafts:
            token_s = max(token_s, self._prompts.draft_s(way.prompt_condition(Role.DRAFTER), self._ratios))
        return self._prompts.num_per_output * token_s

    def catch_up_s(self, num_tokens: int) -> float:
        """Return the seconds in which a drafter that lacks committed tokens caches them."""
        token_s = self._prompts.draft_s(Condition.ALONE, self._ratios)
        return num_tokens * (token_s or self._prompts.verify_s(Condition.ALONE, self._ratios))

    def verify_s(self, condition: Condition, num_rows: float) -> float:
        """Return the seconds of a verify of `num_rows` tokens; `is_known` is true."""
        own = self._verify[condition]
        if own.covers(num_rows):
            return self._extended(condition, num_rows)
        others = [c for c, curve in self._verify.items() if curve.is_known and c is not condition]
        other = next((c for c in others if self._verify[c].covers(num_rows)), None)
        if own.is_known:
            if other is None:
                return self._extended(condition, num_rows)
            anchor = own.nearest(num_rows)
            return self._extended(other, num_rows) * own.at(anchor) / max(self._extended(other, anchor), 1e-9)
        other = other or others[0]
        return self._extended(other, num_rows) * self._ratios[condition] / self._ratios[other]

    def _extended(self, condition: Condition, num_rows: float) -> float:
        """Return the seconds of a condition that is known, with the slope of prefills where nothing nearer is."""
        curve, token_s = self._verify[condition], self._prompts.verify_s(condition, self._ratios)
        # Hardly more than reading the weights takes, unless a prompt's tokens cost less. Rows that are taken for cheap
        # are tried, and measured; what is taken for dear would never be.
        slope_s = _SLOPE * curve.at(curve.nearest(1))
        slope_s = min(slope_s, token_s) if token_s else slope_s
        return curve.at(num_rows, slope_s, slope_s / 2)

    def draft_s(self, condition: Condition, depth: int, num_rows: float) -> float:
        """Return the seconds of `depth` draft forwards of `num_rows` requests each; `knows_drafts` is true."""
        if not depth:
            return 0.0
        curves, ratio = self._draft[condition], 1.0
        if not curves:
            name, curves = next(pair for pair in self._draft.items() if pair[1])
            ratio = self._ratios[condition] / self._ratios[name]
        known = sorted(curves.values(), key=lambda pair: pair[0])
        below = next((pair for pair in reversed(known) if pair[0] <= num_rows), known[0])
        above = next((pair for pair in known if pair[0] >= num_rows), known[-1])
        low_s = _at_depth(below[1], depth)
        if below is above:
            return ratio * low_s * max(1 + _SLOPE * (num_rows - below[0]), 0.5)
        weight = (num_rows - below[0]) / (above[0] - below[0])
        return ratio * (low_s + weight * max(_at_depth(above[1], depth) - low_s, 0.0))

    def period_s(self, way: Way, num_in_flight: int, num_drafts: float, depth: int) -> float:
        """Return the seconds in which every request in flight has a round.

        Args:
            num_drafts: drafts of all of them together. depth: most drafts of one.
        """
        num_batches = way.num_batches(num_in_flight)
        num_requests = num_in_flight / num_batches
        condition = way.condition(num_in_flight)
        if way.mode.runs_ahead and not depth:
            condition = Condition.ALONE  # nothing is prepared
        verify_s = self.verify_s(condition, (num_in_flight + num_drafts) / num_batches)
        drafter_is = way.condition(num_in_flight, Role.DRAFTER)
        overhead_s = self._overhead_s(_flow(way, num_in_flight, depth > 0), ceil(num_requests))
        if way.mode.runs_ahead and depth:
            _, is_asked = self._hits.settle(depth, way.num_branches, num_in_flight)
            beside_s = self.beside_s(way, num_in_flight, depth)
            return is_asked * self.draft_s(drafter_is, depth, num_in_flight) + max(verify_s, beside_s) + overhead_s
        draft_s = self.draft_s(drafter_is, depth, num_drafts / num_batches / max(depth, 1))
        if num_batches == 1:
            return draft_s + verify_s + overhead_s
        return max(draft_s + verify_s, 2 * draft_s, 2 * verify_s) + overhead_s

    def beside_s(self, way: Way, num_in_flight: int, depth: int) -> float:
        """Return the seconds that the drafter works while a batch is verified: for the other one, or ahead."""
        num_requests = num_in_flight / way.num_batches(num_in_flight)
        if way.mode.runs_ahead:
            return self.draft_s(Condition.OVERLAPPED, depth + 1, way.num_branches * num_requests)
        return self.draft_s(Condition.OVERLAPPED, depth, num_requests)

    def drafted_share(self, way: Way, num_in_flight: int, depth: int) -> float:
        """Return the part of the requests that have drafts in a round: where the drafter runs ahead, those of which a
        branch came true, or all if that is none of them."""
        if not way.mode.runs_ahead or not depth:
            return 1.0
        return self._hits.settle(depth, way.num_branches, num_in_flight)[0]

    def _overhead_s(self, flow: _Flow, num_requests: int) -> float:
        curve = self._overhead.get(flow)
        if curve is not None:
            return max(curve.at(num_requests, _OVERHEAD_PER_REQUEST_S), 0.0)
        return _OVERHEAD_S + _OVERHEAD_PER_REQUEST_S * num_requests


def _flow(way: Way, num_in_flight: int, has_drafts: bool) -> _Flow:
    return way.num_batches(num_in_flight), way.mode.runs_ahead, has_drafts


def _at_depth(curve: CostCurve, depth: int) -> float:
    known = curve.nearest(depth)
    per_draft_s = curve.at(known) / known
    if depth < known and not curve.covers(depth):
        return per_draft_s * depth  # the slope between deeper ones is that of their noise
    return curve.at(depth, per_draft_s, _LEAST_STEP * per_draft_s)


def _busy_s(timing: Timing) -> float:
    return timing.busy_ns / 1e9
