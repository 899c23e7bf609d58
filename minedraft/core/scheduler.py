"""The scheduling of requests, pure: no asyncio, no gRPC, no clock, no log. The pipeline drives it.

A round of one batch is `plan` -> (draft) -> `assemble` -> (verify) -> `commit`. Both batches go
through the same calls, interleaved in any order. Requests of a planned round are `in_round`, and no
other round changes them until it is committed, but one that follows it. `take_events` returns what has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from minedraft.core import events
from minedraft.core.batches import BatchManager
from minedraft.core.draft_book import DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits, check_replays, check_request, check_successor_memory
from minedraft.core.policy.base import DraftOffer, DraftPolicy, FixedDraftLen
from minedraft.core.policy.guarded import GuardedDraftPolicy
from minedraft.core.policy.steps import StepsPerCommand
from minedraft.core.queueing.seating import Seating
from minedraft.core.queueing.trials import Trials
from minedraft.core.queueing.waiting_room import WaitingRoom
from minedraft.core.request import NewRequest, Request, RequestUpdate
from minedraft.core.rounds import (
    PlannedSpan,
    RoundPlan,
    RoundTally,
    apply_verdict,
    following_spans,
    match_proposals,
    shorten,
    to_verify_span,
    with_steps,
)
from minedraft.core.span_planner import SpanPlanner, wanted_drafts
from minedraft.errors import MineDraftError, NumericError, ProtocolError, StaleRound
from minedraft.messages import Proposal, Verdict, VerifySpan
from minedraft.types import Batch, FinishReason, Mode

Updates: TypeAlias = list[RequestUpdate]


class Scheduler:
    """Owns every request and decides what each round does.

    Args:
        verifier_kv: mirror of the verifier's KV.
        book: the drafter's book; None decodes without drafts.
        policy: decides how many drafts to ask for, and which to verify.
    """

    def __init__(
        self, limits: SchedulerLimits, verifier_kv: KvLedger, book: DraftBook | None, policy: DraftPolicy | None = None
    ) -> None:
        self.limits = limits
        self.verifier_kv = verifier_kv
        self.has_verifier = True
        self.book = book
        self.batches = BatchManager(limits.num_batches, limits.max_batch_size)
        self.room = WaitingRoom()
        self._seating = Seating(self, self.batches, self.room, lambda event: self._events.append(event))
        self.requests: dict[int, Request] = {}
        self._policy = GuardedDraftPolicy(
            policy or FixedDraftLen(), lambda cause: self._events.append(events.PolicyReplaced(cause))
        )
        self.steps = StepsPerCommand()
        self._trials = Trials()
        self._in_flight: dict[int, Batch] = {}  # by number, the rounds that are planned and not ended
        self._events: list[events.Event] = []
        self._next_id = 1
        self._round_number = 0
        self._change: str | None = None  # why limits change, until they are in force

    def take_events(self) -> Sequence[events.Event]:
        """Return the events since the last call, in order."""
        happened, self._events = self._events, []
        return happened

    # Requests come and go

    def add(self, new: NewRequest) -> Request:
        """Accept a request; it starts with the next round that has room.

        Raises:
            InvalidRequest: the request could never run (empty, longer than the context or the KV cache).
            Overloaded: too many requests or tokens are waiting.
        """
        check_request(new, self.limits, self.verifier_kv)
        self.room.check_room(new, self.limits, self.batches.num_free_seats)
        request = Request.create(self._next_id, new)
        self._next_id += 1
        self.requests[request.id] = request
        self.room.enter(request, is_first=False)
        self._events.append(events.RequestQueued(request.id, request.spec.prompt_len, new.name))
        return request

    def abort(self, request_id: int) -> RequestUpdate | None:
        """End a request. Return None if it is unknown, or ends later with the round it is part of."""
        request = self.requests.get(request_id)
        if request is None or request.is_aborted:
            return None
        request.is_aborted = True
        return None if request.in_round else self.finish(request, FinishReason.ABORT)

    def pause(self, request_id: int) -> None:
        """Give a request's place in rounds to others until `resume`, from the end of its round on."""
        if (request := self.requests.get(request_id)) is not None:
            self._seating.pause(request)

    def resume(self, request_id: int) -> None:
        """Let a paused request go on, before those that wait."""
        if (request := self.requests.get(request_id)) is not None:
            self._seating.resume(request)

    def finish(self, request: Request, reason: FinishReason) -> RequestUpdate:
        """Forget a request that is in no round and free its KV on both workers."""
        self._remove(request, reason)
        return RequestUpdate(request, finish_reason=reason)

    def fail_all(self, error: MineDraftError) -> Updates:
        """End every request with `error`, even those in a round; after this no present round can be committed."""
        updates = [self._fail(request, error) for request in list(self.requests.values())]
        self._events += [events.RoundAbandoned(batch, number) for number, batch in self._in_flight.items()]
        self._in_flight.clear()
        self._trials = Trials()
        return updates

    # Mode and sizes

    def reconfigure(self, limits: SchedulerLimits, why: str) -> None:
        """Change the limits while requests are live. No request is refused or lost: members of a closed batch
        move to the open one at their round boundary, once it has seats; a batch above its new size admits
        no request until it has shrunk. `is_settled` is true when this is complete."""
        self.limits = limits
        self.batches.resize(limits.num_batches, limits.max_batch_size)
        self._change = why
        self._settle()

    @property
    def is_settled(self) -> bool:
        """Whether the batches conform to the limits."""
        return self._change is None

    # Workers come and go

    def attach_drafter(self, book: DraftBook) -> None:
        """Draft from now on; the drafter holds nothing yet."""
        self.book = book

    def detach_drafter(self) -> None:
        """Decode without drafts; drafts of rounds in flight are still used."""
        self.book = None

    def attach_verifier(self, kv: KvLedger) -> Updates:
        """Go on with a verifier that holds nothing yet: requests keep their seats and are recomputed as after a
        preemption, with the same tokens. A request that its KV cache could never hold ends."""
        self.verifier_kv, self.has_verifier = kv, True
        resting = [request for request in self.requests.values() if not request.in_round]
        return [update for request in resting if (update := self._end_if_hopeless(request)) is not None]

    def detach_verifier(self) -> Updates:
        """Plan nothing until `attach_verifier`. Requests keep their tokens, their seats and their KV in the
        drafter; each round in flight must be given up with `lose_round`. A request that was computed too often when a
        verifier was lost ends (`queueing/trials.py`)."""
        old = self.verifier_kv
        self.verifier_kv = KvLedger(old.num_blocks, old.pool.block_size, old.max_model_len)
        self.has_verifier = False
        if self.book is not None:
            self.book.drop_features()
        self._trials.blame(self.limits.max_replays)
        for request in self.requests.values():
            if request.verifier_len or request.in_round:
                self._events.append(events.RequestReplayed(request.id))
            request.verifier_len = 0
            request.must_leave = False
        resting = [request for request in self.requests.values() if not request.in_round]
        return [update for request in resting if (update := self._end_if_exhausted(request)) is not None]

    def is_current(self, plan: RoundPlan) -> bool:
        """Whether the verifier that a round was planned for is still attached."""
        return self.has_verifier and plan.verifier_kv is self.verifier_kv

    # A round

    @property
    def steps_per_command(self) -> int:
        """How many decode steps the next round may have: one while somebody waits for its end."""
        limits = self.limits
        is_waited_for = self.room.queue or self._change is not None or self._trials.on_trial()
        if limits.max_steps == 1 or limits.mode is not Mode.AR or is_waited_for:
            return 1
        return self.steps.num_steps() if limits.max_steps is None else limits.max_steps

    def plan(self, batch: Batch) -> RoundPlan | None:
        """Begin the batch's next round: admit, reserve KV, preempt. Return None if it has nothing to do now."""
        if not self.has_verifier:
            return None
        self._seating.admit(batch)
        if self._change is not None:  # members of a closed batch need not wait for its next round
            self._move_from(batch)
        members: Sequence[Request] = tuple(self.batches.members(batch))
        if on_trial := self._trials.on_trial():
            if self._in_flight:
                return None
            members = [request for request in on_trial if request.batch is batch]
        planner = SpanPlanner(self.limits, self.verifier_kv, self.book, self._policy, self._seating.make_room, members)
        spans: list[PlannedSpan] = []
        for request in members:
            if request.batch is not batch:  # preempted just now, for another member
                continue
            if (span := planner.plan(request)) is not None:
                request.num_open_rounds += 1
                spans.append(span)
                if on_trial:
                    break
        return self._begin_round(batch, spans, planner.num_prompt_tokens) if spans else None

    def follow(self, plan: RoundPlan) -> RoundPlan | None:
        """Begin the round that follows a planned one, before that has ended, if only it is to be done: decoding in one
        batch, without drafts. So the verifier need not wait for the scheduler between two rounds. A request
        that ends with `plan`, in a way that is not known yet, takes part in vain. End the two in their order."""
        is_alone = self.limits.num_batches == 1 and not self._trials.on_trial()
        if not is_alone or self._change is not None or not self.is_current(plan):
            return None
        spans = following_spans(plan, self.batches.members(plan.batch))
        is_seat_wanted = self.room.queue and (self.batches.has_seat() or len(spans) < self.batches.size(plan.batch))
        if not spans or is_seat_wanted or self._wants_drafts(spans):
            return None
        for span in spans:
            if not self.verifier_kv.can_reserve(span.request.id, span.committed_len):
                return None
            self.verifier_kv.reserve(span.request.id, span.committed_len)
        for span in spans:
            span.request.num_open_rounds += 1
        return self._begin_round(plan.batch, spans, 0)

    def assemble(self, plan: RoundPlan, proposals: Iterable[Proposal]) -> tuple[VerifySpan, ...]:
        """Return the spans of a planned round's verify command, with the proposed drafts.

        A proposal is matched by request id and committed length, never by position; one that does not
        match is counted and dropped, and its request decodes without drafts.
        """
        fitting, num_dropped = match_proposals(plan, (*plan.ready, *proposals))
        if num_dropped:
            self._events.append(events.ProposalsDropped(plan.batch, plan.number, num_dropped))
        lens = self._policy.select([DraftOffer(p.request_id, len(p.tokens), p.scores, p.source) for p in fitting])
        chosen = {p.request_id: shorten(p, num_drafts) for p, num_drafts in zip(fitting, lens, strict=True)}
        live = [span for span in plan.spans if span.request.id in self.requests and not span.request.is_aborted]
        if live:
            self._trials.send(plan)
        return tuple([to_verify_span(span, chosen.get(span.request.id)) for span in live])

    def commit(self, plan: RoundPlan, command: Sequence[VerifySpan], verdicts: Iterable[Verdict]) -> Updates:
        """Apply a round's verdicts: grow its requests, end those that are done, free their KV.

        Args:
            command: the spans that `assemble` returned.

        Raises:
            ProtocolError: a verdict is missing or does not continue its request.
        """
        assert self.is_current(plan), "a round of a lost verifier is given up"
        verdict_of = {verdict.request_id: verdict for verdict in verdicts}
        sent = {span.request_id: span for span in command}
        updates: Updates = []
        tally = RoundTally(plan, self.book)
        for span in plan.spans:
            request = span.request
            request.num_open_rounds -= 1
            if request.id not in self.requests:  # ended with the round that this one follows
                continue
            if request.is_aborted:
                updates.append(self.finish(request, FinishReason.ABORT))
                continue
            verdict, committed_len = verdict_of.get(request.id), request.verifier_len + span.num_tokens
            if verdict is not None and span.follows and verdict.error == StaleRound.reason:
                continue  # the round that it follows gave no token; the request is in the next round again
            if verdict is None or verdict.committed_len != committed_len:
                raise ProtocolError(f"no verdict continues request {request.id} at {committed_len} tokens")
            tally.take(span, sent[request.id], verdict)
            if (update := self._commit_span(span, len(sent[request.id].drafts), verdict)) is not None:
                updates.append(update)
        self._end_round(plan)
        self._events.append(tally.event(updates, self.batches.num_active))
        return updates

    def abandon(self, plan: RoundPlan, culprit: int | None, error: MineDraftError) -> Updates:
        """Give up a round that the verifier did not execute: end `culprit`, or all its requests if that is
        None, with `error`. The others lose only this round."""
        return self._give_up(plan, lambda r: self._fail(r, error) if culprit in (None, r.id) else None)

    def lose_round(self, plan: RoundPlan) -> Updates:
        """Give up a round whose verifier is lost; its requests are in the next round again."""
        return self._give_up(plan, self._end_if_hopeless)

    # Inside

    def _begin_round(self, batch: Batch, spans: Sequence[PlannedSpan], num_prompt_tokens: int) -> RoundPlan:
        self._round_number += 1
        self._in_flight[self._round_number] = batch
        spans = with_steps(spans, self.steps_per_command, self.verifier_kv)
        plan = RoundPlan.of(batch, self._round_number, spans, self.verifier_kv, self.book, self.limits.num_branches)
        lens = [draft.draft_len for draft in plan.drafts]
        counts = num_prompt_tokens, sum(lens), max(lens, default=0), sum([len(p.tokens) for p in plan.prefills])
        ahead = max([span.ahead_len for span in spans]), plan.num_branches
        self._events.append(events.RoundPlanned(batch, plan.number, len(spans), *counts, *ahead))
        return plan

    def _give_up(self, plan: RoundPlan, end: Callable[[Request], RequestUpdate | None]) -> Updates:
        updates: Updates = []
        for span in plan.spans:
            span.request.num_open_rounds -= 1
            if span.request.id not in self.requests:
                continue
            is_aborted = span.request.is_aborted
            update = self.finish(span.request, FinishReason.ABORT) if is_aborted else end(span.request)
            if update is not None:
                updates.append(update)
        is_told = plan.number not in self._in_flight  # it ended with all requests
        self._end_round(plan)
        if not is_told:
            self._events.append(events.RoundAbandoned(plan.batch, plan.number))
        return updates

    def _end_round(self, plan: RoundPlan) -> None:
        """Unseat the requests that must leave or are paused, and rebalance the batches."""
        self._in_flight.pop(plan.number, None)
        self._trials.end(plan)
        for span in plan.spans:
            if span.request.batch is None or span.request.in_round:
                continue
            if span.request.must_leave:
                self._seating.preempt(span.request)
            elif span.request.is_paused:
                self._seating.unseat(span.request)
        self._move_from(plan.batch)

    def _wants_drafts(self, spans: Sequence[PlannedSpan]) -> bool:
        """Whether the next round of these requests, which are all of a batch, is to have drafts."""
        if self.book is None:
            return False
        k = self.limits.max_draft_len
        return any(wanted_drafts(self._policy, span.request, len(spans), k) for span in spans)

    def _move_from(self, batch: Batch) -> None:
        """Move requests that should be in the other batch; `batch` is at its round boundary."""
        while (moved := self.batches.rebalance(batch)) is not None:
            self._events.append(events.RequestMoved(moved.id, batch.other))
        self._settle()

    def _settle(self) -> None:
        if self._change is not None and self.batches.is_settled:
            why, self._change = self._change, None
            self._events.append(self.limits.changed(why))

    def _end_if_exhausted(self, request: Request) -> RequestUpdate | None:
        error = check_replays(request, self.limits)
        return None if error is None else self._fail(request, error)

    def _end_if_hopeless(self, request: Request) -> RequestUpdate | None:
        """End a request that is not to be recomputed again, or cannot be."""
        error = check_replays(request, self.limits) or check_successor_memory(request, self.verifier_kv)
        return None if error is None else self._fail(request, error)

    def _commit_span(self, span: PlannedSpan, num_drafts: int, verdict: Verdict) -> RequestUpdate | None:
        request = span.request
        if verdict.error:
            error = NumericError(f"the target's logits are not finite after {span.committed_len} tokens")
            return self._fail(request, error)
        self._trials.survive(span)
        token_ids, reason = apply_verdict(span, num_drafts, verdict)
        if reason is not None:
            self._remove(request, reason)
        if not span.sample:
            return None
        logprobs, forced = verdict.logprobs[: len(token_ids)], request.last_forced
        return RequestUpdate(request, token_ids, logprobs, reason, num_forced=forced, num_steps=verdict.num_steps)

    def _fail(self, request: Request, error: MineDraftError) -> RequestUpdate:
        self._remove(request, None, error)
        return RequestUpdate(request, error=error)

    def _remove(self, request: Request, reason: FinishReason | None, error: MineDraftError | None = None) -> None:
        self._seating.remove(request)
        self.verifier_kv.release(request.id)
        if self.book is not None:
            self.book.forget(request.id)
        self._trials.forget(request.id)
        del self.requests[request.id]
        cause = "" if error is None else error.reason
        self._events.append(events.RequestEnded(request.id, request.output_len, reason, cause))
        self._settle()
