"""The overlapped loop: one lane per batch, both sharing the two workers.

A lane is plan -> draft -> verify -> commit, again and again. Two lanes give batch-parallel
speculative decoding: while lane A's verify runs, lane B's draft does, and each worker's mailbox
holds the other lane's command before it needs it, so nothing in the scheduler is on the critical
path as long as one device is slower than the other plus a round trip. One lane is plain speculative
decoding; one lane with draft_len 0 is autoregressive decoding. There is no other code path.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from minedraft.core.ledger import KvLedger
from minedraft.core.request import NewRequest, RequestUpdate
from minedraft.core.round_stats import RoundStats
from minedraft.core.rounds import RoundPlan
from minedraft.core.scheduler import Scheduler, SchedulerLimits
from minedraft.engine.drafting import MAX_FAILURES, Drafting, check_balance, make_ledger
from minedraft.engine.usage_clock import UsageClock
from minedraft.engine.workers import Drafter, Verifier
from minedraft.errors import (
    Draining,
    InternalError,
    InvalidRequest,
    MineDraftError,
    ProtocolError,
    Unavailable,
)
from minedraft.output import RequestUsage
from minedraft.types import (
    Batch,
    FinishReason,
    RoundId,
    Timing,
    TokenLogprobs,
    Verdict,
    VerifyCommand,
    VerifySpan,
    WorkerInfo,
)

logger = logging.getLogger("minedraft.engine.pipeline")


class Sink(Protocol):
    """Where a request's tokens go. Called in the event loop; must not block."""

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> bool:
        """New tokens. Return True to end the request now (a stop string was found)."""

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        """The end, exactly once: either a reason or an error."""


class Pipeline:
    """Runs the scheduler's rounds on the two workers.

    Use as an async context manager; leaving it cancels what is still running.

    Args:
        drafter: None decodes without drafts.
        clock: monotonic seconds (a parameter for tests).
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        verifier: Verifier,
        drafter: Drafter | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.verifier = verifier
        self.stats = RoundStats()
        self.failure: MineDraftError | None = None
        self.failed = asyncio.Event()  # the verifier is gone: nothing can be answered any more
        self.is_draining = False
        self._clock = clock
        self._usage: dict[int, UsageClock] = {}
        self._sinks: dict[int, Sink] = {}
        self._wake = {batch: asyncio.Event() for batch in Batch}
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled = asyncio.Event()  # no change of limits is waiting to come into force
        self._settled.set()
        self._lanes: list[asyncio.Task[None]] = []
        self._num_verify_failures = 0  # in a row, of rounds where no request was named
        self.scheduler = Scheduler(limits, make_ledger(verifier.info), None)
        self._drafting = Drafting(self.scheduler, drafter, self._wake_lanes)

    async def __aenter__(self) -> Self:
        # Both lanes always exist; with one batch the second one has nothing to plan.
        self._lanes = [asyncio.create_task(self._guard_lane(b), name=f"lane-{b.name}") for b in Batch]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._fail_all(Draining("the service has stopped"))

    @property
    def drafter(self) -> Drafter | None:
        """None while there is none: nothing is drafted then."""
        return self._drafting.drafter

    @property
    def drafter_info(self) -> WorkerInfo | None:
        """Of the present drafter or, while it is lost, the last one; None where there never was one."""
        return self._drafting.info

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
        self._sinks[request.id] = sink
        self._usage[request.id] = UsageClock(self._clock())
        self._idle.clear()
        self._wake_lanes()
        return request.id

    def abort(self, request_id: int) -> bool:
        """End a request; its KV is free within a round. False when no live request has this id."""
        if request_id not in self._sinks:
            return False
        progress = self.scheduler.abort(request_id)
        if progress is not None:
            self._deliver([progress])
        self._wake_lanes()
        return True

    async def drain(self) -> None:
        """Refuse new requests and return when the live ones have ended."""
        self.is_draining = True
        await self._idle.wait()

    def reconfigure(self, limits: SchedulerLimits) -> None:
        """Switch mode or limits, as soon as the seated requests have ended: until then no other is given
        a seat. Whoever waits goes on to wait, and nobody is refused."""
        self.scheduler.reconfigure(limits)
        self._settled.clear()
        self._settle()

    async def settled(self) -> None:
        """Return when the limits asked for are in force.

        Raises:
            Unavailable: the verifier is gone.
        """
        self._check_verifier()
        await self._settled.wait()
        self._check_verifier()

    # The overlapped loop

    async def _run_lane(self, batch: Batch) -> None:
        while True:
            plan, is_steady = await self._next_plan(batch)
            proposals, draft_timing = await self._drafting.draft(plan)
            command = self.scheduler.assemble(plan, proposals)
            async with asyncio.TaskGroup() as together:
                together.create_task(self._drafting.prefill(plan))
                verify = together.create_task(self._verify(plan, command))
            verdicts, verify_timing = verify.result()
            if verdicts is None:
                continue
            progress = self.scheduler.commit(plan, command, verdicts)
            self._record(plan, draft_timing, verify_timing, progress, is_steady=is_steady)
            self._deliver(progress)
            self._wake_lanes()

    async def _next_plan(self, batch: Batch) -> tuple[RoundPlan, bool]:
        """The batch's next round, and whether it followed the last one without waiting for work."""
        is_steady = True
        while True:
            self._wake[batch].clear()
            plan = self.scheduler.plan(batch)
            if plan is not None:
                now_s = self._clock()
                for span in plan.spans:
                    self._usage[span.request.id].start(now_s)
                return plan, is_steady
            is_steady = False
            if self._settle():  # the last seated request has left, perhaps in the plan just tried
                continue
            # Freed blocks may be what the waiting requests wait for; no command is there to carry them.
            if not await self._flush_releases():
                await self._wake[batch].wait()

    async def _verify(self, plan: RoundPlan, spans: tuple[VerifySpan, ...]) -> tuple[Sequence[Verdict] | None, Timing]:
        """The verdicts; None when the round has been abandoned."""
        if not spans:  # every request of the round was aborted meanwhile
            return (), Timing()
        ledger = self.scheduler.verifier_kv
        released = ledger.take_releases()
        command = VerifyCommand(RoundId(self.verifier.info.epoch, plan.batch, plan.number), spans, released)
        try:
            reply = await self.verifier.verify(command)
        except ProtocolError as error:
            ledger.return_releases(released)
            self._abandon(plan, error)
            return None, Timing()
        self._num_verify_failures = 0
        self._acknowledge(ledger, released)
        return reply.verdicts, reply.timing

    def _abandon(self, plan: RoundPlan, error: ProtocolError) -> None:
        """A round that the verifier refused costs the request that it named, or those of the round; the
        verifier is as it was, and everybody else goes on.

        Raises:
            ProtocolError: it refuses whatever comes.
        """
        logger.error("round %d of batch %s failed: %s", plan.number, plan.batch.name, error)
        self.scheduler.counters.failed_commands += 1
        self._num_verify_failures += error.request_id is None
        if self._num_verify_failures >= MAX_FAILURES:
            raise error
        internal = InternalError(f"the verifier refused this request: {error}")
        self._deliver(self.scheduler.abandon(plan, error.request_id, internal))
        self._wake_lanes()

    # Around it

    async def _guard_lane(self, batch: Batch) -> None:
        """A lane that fails takes the service with it: every waiter hears of it at once."""
        try:
            await self._run_lane(batch)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            cause = _cause_of(error)
            if self.failure is None:
                logger.error("lane %s failed: %s", batch.name, cause, exc_info=not isinstance(cause, MineDraftError))
            self.fail(cause if isinstance(cause, MineDraftError) else InternalError(f"{type(cause).__name__}: {cause}"))

    def fail(self, error: MineDraftError) -> None:
        """End everything with `error`; also for the owner of the verifier's link when it breaks while idle."""
        if self.failure is None:
            self.failure = error
            for lane in self._lanes:
                if lane is not asyncio.current_task():
                    lane.cancel()
            self._fail_all(error)
            self.failed.set()
            self._settled.set()  # nothing will come into force any more

    def _fail_all(self, error: MineDraftError) -> None:
        for request_id in list(self._sinks):
            request = self.scheduler.requests[request_id]
            self._deliver([RequestUpdate(request, error=error)])
        self.scheduler.requests.clear()

    def lose_drafter(self, error: MineDraftError) -> None:
        """Go on without drafts; for the owner of the drafter's link, when it breaks while idle."""
        self._drafting.lose(error)

    def gain_drafter(self, drafter: Drafter) -> None:
        """Draft again: `drafter` is a new link, whose worker knows no request yet."""
        self._drafting.gain(drafter)

    async def _flush_releases(self) -> bool:
        """Send releases that no command carries; True when there were any."""
        ledger = self.scheduler.verifier_kv
        if released := ledger.take_releases():
            num_free = await self.verifier.release(released)
            self._acknowledge(ledger, released)
            check_balance("verifier", self.scheduler, ledger, num_free)
        return await self._drafting.release() or bool(released)

    def _acknowledge(self, ledger: KvLedger, released: tuple[int, ...]) -> None:
        """Blocks are free now: whoever waits for them must look again, in either lane."""
        if released:
            ledger.acknowledge(released)
            self._wake_lanes()

    def _deliver(self, progress: Sequence[RequestUpdate]) -> None:
        now_s = self._clock()
        for item in progress:
            request = item.request
            sink, usage = self._sinks[request.id], self._usage[request.id]
            if item.token_ids:
                usage.on_tokens(now_s)
                if sink.on_tokens(item.token_ids, item.logprobs) and not item.is_final:
                    item = self.scheduler.finish(request, FinishReason.STOP)
            if item.is_final:
                del self._sinks[request.id], self._usage[request.id]
                sink.on_finish(item.finish_reason, item.error, usage.finish(request, now_s))
        if not self._sinks:
            self._idle.set()

    def _record(
        self,
        plan: RoundPlan,
        draft: Timing | None,
        verify: Timing,
        progress: Sequence[RequestUpdate],
        *,
        is_steady: bool,
    ) -> None:
        self.stats.record(
            plan.batch,
            draft,
            verify,
            now_s=self._clock(),
            num_requests=len(plan.spans),
            num_active=sum(self.scheduler.batches.size(b) > 0 for b in self.scheduler.batches.batches),
            num_output_tokens=sum(len(item.token_ids) for item in progress),
            is_steady=is_steady,
            is_prefill=any(span.num_tokens > 1 or span.num_prefill for span in plan.spans),
        )

    def _settle(self) -> bool:
        """Put new limits into force if they can be. Then both lanes have something to plan, for seats of
        either batch go to those who waited."""
        if not self.scheduler.settle():
            return False
        self.stats = RoundStats()
        self._settled.set()
        self._wake_lanes()
        return True

    def _check_verifier(self) -> None:
        if self.failure is not None:
            raise Unavailable(f"no verifier: {self.failure}")

    def _wake_lanes(self) -> None:
        for event in self._wake.values():
            event.set()


def _check_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest where an id is outside the vocabulary."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        raise InvalidRequest(field, wrong, f"token ids are in [0, {vocab_size})")


def _cause_of(error: BaseException) -> BaseException:
    """The first real error inside a task group's bundle."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
