"""Requests in, tokens out: the scheduler's rounds, run on the two workers.

One lane for each batch, both sharing the workers (`lanes.py`). Two lanes give batch-parallel
speculative decoding: while lane A's verify runs, lane B's draft does, and each worker's mailbox
holds the other lane's command before it needs it, so nothing in the scheduler is on the critical
path as long as one device is slower than the other plus a round trip. One lane is plain speculative
decoding, or PEARL if the drafter runs ahead of its requests (`core/running_ahead.py`); one lane with draft_len 0 is
autoregressive decoding, where each round is in the mailbox before the last one has ended (`Scheduler.follow`), and may
have several steps (`core/policy/steps.py`). There is no other code path.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from minedraft.core import events
from minedraft.core.limits import RETRY_AFTER_LOSS_S, SchedulerLimits
from minedraft.core.policy.base import DraftPolicy, FixedDraftLen, FixedMode, ModePolicy
from minedraft.core.policy.guarded import GuardedModePolicy
from minedraft.core.request import NewRequest, RequestUpdate
from minedraft.core.rounds import RoundPlan
from minedraft.core.scheduler import Scheduler
from minedraft.engine.cores import CoreSharing
from minedraft.engine.drafting import Drafting
from minedraft.engine.event_log import EventLog
from minedraft.engine.lanes import run_overlapped
from minedraft.engine.mirrors import make_ledger
from minedraft.engine.usage_clock import UsageClock
from minedraft.engine.verifying import Checked, Unchecked, Verifying
from minedraft.engine.workers import Drafter, Verifier
from minedraft.errors import Draining, InternalError, InvalidRequest, MineDraftError, Unavailable, WorkerLost
from minedraft.messages import Proposal, TokenLogprobs, VerifySpan
from minedraft.output import RequestUsage
from minedraft.types import Batch, FinishReason, Role

logger = logging.getLogger("minedraft.pipeline")

EventSource: TypeAlias = Callable[[], Sequence[events.Event]]
"""Returns what has happened since its last call, in order."""


class Sink(Protocol):
    """Receives a request's tokens. Called in the event loop; must not block."""

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], num_forced: int) -> bool:
        """Take new tokens, the last `num_forced` without a choice. Return True to end now (a stop string was found)."""

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        """Take the end, with either a reason or an error. Called exactly once."""


class Pipeline:
    """Runs the scheduler's rounds on the two workers.

    Use as an async context manager; leaving it ends the requests that are still live.

    Args:
        drafter: None decodes without drafts.
        observers: take every event, in the order of the list.
        draft_policy: decides how many drafts to ask for, and which to verify.
        mode_policy: decides mode and sizes; it is not called while `is_lent`.
        event_sources: return events that are published with those of the scheduler.
        verifier_returns: if true, requests outlive the loss of the verifier and wait for `gain_verifier`;
            otherwise its loss ends the pipeline.
        clock: monotonic seconds (a parameter for tests).

    Attributes:
        failure: the error that has ended the pipeline; `failed` is set with it.
        is_lent: whether a client sets mode and sizes at present.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        verifier: Verifier,
        drafter: Drafter | None,
        *,
        observers: Sequence[events.Observer] = (),
        draft_policy: DraftPolicy | None = None,
        mode_policy: ModePolicy | None = None,
        event_sources: Sequence[EventSource] = (),
        verifier_returns: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failure: MineDraftError | None = None
        self.failed = asyncio.Event()
        self.is_draining = False
        self.is_lent = False
        self._clock = clock
        self._log = EventLog()
        draft_policy, mode_policy = draft_policy or FixedDraftLen(), mode_policy or FixedMode()
        self._mode_policy = GuardedModePolicy(mode_policy, lambda cause: self._publish(events.PolicyReplaced(cause)))
        self._usage: dict[int, UsageClock] = {}
        self._sinks: dict[int, Sink] = {}
        self._wake = {batch: asyncio.Event() for batch in Batch}
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled = asyncio.Event()  # the requested limits are in force
        self._settled.set()
        self._lanes: list[asyncio.Task[None]] = []
        self._cores = CoreSharing(lambda: (self.verifier, *([self.drafter] if self.drafter else ())), self._publish)
        self.scheduler = Scheduler(limits, make_ledger(verifier.info), None, draft_policy)
        policies = draft_policy.observe, mode_policy.observe, self.scheduler.steps.observe
        self._observers = [*observers, *policies, self._cores.observe]
        self._event_sources = (self.scheduler.take_events, *event_sources)
        self._verifying = Verifying(
            self.scheduler,
            verifier,
            deliver=self._deliver,
            publish=self._publish,
            wake=self._wake_lanes,
            can_return=verifier_returns,
        )
        self._drafting = Drafting(self.scheduler, self._publish, self._wake_lanes)
        self._publish(events.WorkerJoined(verifier.info))
        self._publish(limits.changed("start"))
        if drafter is not None:
            self._drafting.gain(drafter)

    async def __aenter__(self) -> Self:
        # Both lanes always exist; with one batch the second one has nothing to plan.
        self._lanes = [asyncio.create_task(self._guard_lane(b), name=f"lane-{b.name}") for b in Batch]
        self._sharing = asyncio.create_task(self._cores.run(), name="cores")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drafting.close()
        tasks = [*self._lanes, self._sharing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._deliver(self.scheduler.fail_all(Draining("the service has stopped")))

    @property
    def verifier(self) -> Verifier:
        """The present verifier or, while it is lost, the last one."""
        return self._verifying.verifier

    @property
    def has_verifier(self) -> bool:
        return not self._verifying.is_lost

    @property
    def drafter(self) -> Drafter | None:
        """The present drafter; None while there is none, and nothing is drafted."""
        return self._drafting.drafter

    @property
    def is_idle(self) -> bool:
        """Whether no request is live."""
        return not self._sinks

    def look_again(self) -> None:
        """Have the lanes without a round check for work."""
        self._wake_lanes()

    # Requests

    def submit(self, new: NewRequest, sink: Sink) -> int:
        """Accept a request and return its id; its tokens go to `sink`.

        Raises:
            InvalidRequest, Overloaded: see `Scheduler.add`. Unavailable, Draining.
        """
        self._check_verifier()
        if self.is_draining:
            raise Draining("the service is draining and takes no new requests")
        vocab_size = self.verifier.info.vocab_size
        new.sampling.check_token_ids(vocab_size)
        _check_ids("prompt.token_ids", new.prompt_token_ids, vocab_size)
        _check_ids("stop_ids", new.stop_ids, vocab_size)
        request = self.scheduler.add(new)
        self._verifying.curtail()
        self._sinks[request.id] = sink
        self._usage[request.id] = UsageClock(self._clock())
        self._idle.clear()
        self._publish_events()
        self._wake_lanes()
        return request.id

    def abort(self, request_id: int) -> bool:
        """End a request; its KV is free within a round. Return False if no live request has this id."""
        if request_id not in self._sinks:
            return False
        update = self.scheduler.abort(request_id)
        self._deliver([update] if update is not None else [])
        self._wake_lanes()
        return True

    def pause(self, request_id: int) -> None:
        """Give a request's place in rounds to others until `resume`; it keeps its KV while nobody needs it."""
        self.scheduler.pause(request_id)
        self._publish_events()
        self._wake_lanes()

    def resume(self, request_id: int) -> None:
        """Let a paused request go on."""
        self.scheduler.resume(request_id)
        self._publish_events()
        self._wake_lanes()

    async def drain(self) -> None:
        """Refuse new requests and return when the live ones have ended."""
        self.is_draining = True
        await self._idle.wait()

    # Mode and sizes

    def reconfigure(self, limits: SchedulerLimits, why: str = "asked for") -> None:
        """Change mode and limits while requests are live; see `Scheduler.reconfigure`."""
        self._settled.clear()
        self.scheduler.reconfigure(limits, why)
        self._publish_events()
        self._wake_lanes()

    async def settled(self) -> None:
        """Return when the requested limits are in force.

        Raises:
            Unavailable: the pipeline has failed.
        """
        self._check_verifier()
        await self._settled.wait()
        self._check_verifier()

    # Workers come and go: called by the owner of their links

    def lose_drafter(self, error: MineDraftError) -> None:
        """Go on without drafts."""
        self._drafting.lose(error)

    def gain_drafter(self, drafter: Drafter) -> None:
        """Draft again: `drafter` is a new link, whose worker knows no request yet."""
        self._drafting.gain(drafter)

    def lose_verifier(self, error: MineDraftError) -> None:
        """Keep the requests, and plan no round, until `gain_verifier`."""
        self._verifying.lose(error)

    def stop_waiting(self, error: MineDraftError) -> None:
        """End the requests that wait for the lost verifier, and refuse others until it is back."""
        self._verifying.stop_waiting(error)
        self._settled.set()  # wakes `settled`, which then raises

    def gain_verifier(self, verifier: Verifier) -> None:
        """Go on with the live requests: `verifier` is a new link, whose worker knows no request yet."""
        self._verifying.gain(verifier)

    def fail(self, error: MineDraftError) -> None:
        """End the pipeline and every request with `error`."""
        if self.failure is None:
            self.failure = error
            for lane in self._lanes:
                if lane is not asyncio.current_task():
                    lane.cancel()
            self._deliver(self.scheduler.fail_all(error))
            if isinstance(error, WorkerLost) and self.has_verifier:
                self._publish(events.WorkerLeft(Role.VERIFIER, str(error), replace(self.verifier.stats), error.cause))
            self.failed.set()
            self._settled.set()  # wakes `settled`, which then raises

    # The calls of a lane

    async def plan(self, batch: Batch) -> RoundPlan:
        """Return the batch's next round; wait until there is something to do."""
        while True:
            self._wake[batch].clear()
            plan = self.scheduler.plan(batch)
            self._publish_events()
            if plan is not None:
                now_s = self._clock()
                for span in plan.spans:
                    self._usage[span.request.id].start(now_s)
                return plan
            self._publish(events.LaneIdle(batch))
            # Waiting requests may need the blocks that these releases free, and no command carries them now.
            has_released = await self._verifying.release()
            if not (await self._drafting.release() or has_released):
                await self._wake[batch].wait()

    async def draft(self, plan: RoundPlan) -> Sequence[Proposal]:
        return await self._drafting.draft(plan)

    def follow(self, plan: RoundPlan) -> RoundPlan | None:
        following = self.scheduler.follow(plan)
        self._publish_events()
        return following

    def has_prefill(self, plan: RoundPlan) -> bool:
        return self._drafting.has_prefill(plan)

    async def prefill(self, plan: RoundPlan) -> None:
        await self._drafting.prefill(plan)

    def assemble(self, plan: RoundPlan, proposals: Sequence[Proposal]) -> tuple[VerifySpan, ...]:
        return self.scheduler.assemble(plan, proposals) if self.scheduler.is_current(plan) else ()

    async def run_ahead(self, plan: RoundPlan, spans: Sequence[VerifySpan]) -> None:
        await self._drafting.run_ahead(plan, spans)

    async def verify(self, plan: RoundPlan, spans: tuple[VerifySpan, ...]) -> Checked | Unchecked:
        return await self._verifying.verify(plan, spans)

    def commit(self, plan: RoundPlan, outcome: Checked | Unchecked) -> None:
        """End the round: add its tokens to its requests and deliver them, or give it up."""
        if isinstance(outcome, Unchecked):
            self._verifying.give_up(plan, outcome.refusal)
        elif not self.scheduler.is_current(plan):  # the verifier was lost after its answer
            self._verifying.give_up(plan, None)
        else:
            self._deliver(self.scheduler.commit(plan, outcome.spans, outcome.verdicts))
            if not self.is_lent and (decision := self._mode_policy.wanted(self._clock())) is not None:
                self.reconfigure(self.scheduler.limits.with_terms(decision.terms), decision.why)
        self._wake_lanes()

    # Inside

    async def _guard_lane(self, batch: Batch) -> None:
        """Run a lane; if it fails, fail the pipeline, so that every waiting caller is told."""
        try:
            await run_overlapped(self, batch)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            cause = _cause_of(error)
            if self.failure is None:
                logger.error("lane %s failed: %s", batch.name, cause, exc_info=not isinstance(cause, MineDraftError))
            self.fail(cause if isinstance(cause, MineDraftError) else InternalError(f"{type(cause).__name__}: {cause}"))

    def _deliver(self, updates: Sequence[RequestUpdate]) -> None:
        now_s = self._clock()
        for update in updates:
            request = update.request
            sink, usage = self._sinks[request.id], self._usage[request.id]
            if update.token_ids:
                usage.on_tokens(now_s)
                if any(sink.on_tokens(*step) for step in update.steps) and not update.is_final:
                    update = self.scheduler.finish(request, FinishReason.STOP)
            if update.is_final:
                del self._sinks[request.id], self._usage[request.id]
                sink.on_finish(update.finish_reason, update.error, usage.finish(request, now_s))
        if not self._sinks:
            self._idle.set()
        self._publish_events()

    def _publish_events(self) -> None:
        """Pass the events since the last call to the observers, and wake lanes that got a request or a seat by them."""
        for event in [event for take in self._event_sources for event in take()]:
            self._publish(event)
            if isinstance(event, events.RequestMoved):
                self._wake[event.batch].set()
            elif isinstance(event, events.ModeChanged):
                self._settled.set()
                self._wake_lanes()
            elif isinstance(event, events.RequestPreempted):  # it may have been on trial, and the others waited for it
                self._wake_lanes()

    def _publish(self, event: events.Event) -> None:
        now_s = self._clock()
        self._log.observe(event)
        for observe in self._observers:
            try:
                observe(event, now_s)
            except Exception:
                logger.exception("an observer failed at %s and is dropped", type(event).__name__)
                self._observers = [other for other in self._observers if other is not observe]

    def _check_verifier(self) -> None:
        if (cause := self.failure or self._verifying.refusal) is not None:
            raise Unavailable(f"no verifier: {cause}", RETRY_AFTER_LOSS_S)

    def _wake_lanes(self) -> None:
        """Make the lanes check again for work. That of a closed and empty batch can have none: `reconfigure` wakes
        it when the batch opens."""
        for batch in self.scheduler.batches.batches:
            self._wake[batch].set()


def _check_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest unless every id is in the vocabulary."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        raise InvalidRequest(field, wrong, f"token ids must be in [0, {vocab_size})")


def _cause_of(error: BaseException) -> BaseException:
    """Return the first error inside the exception group of a task group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
