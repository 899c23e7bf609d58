"""The drafter's part in the rounds, left out while there is no drafter.

The drafter is an accelerator, not a dependency. A refused command costs one round its drafts; a loss costs
drafts until there is a new link; neither costs a request anything else. A round waits for a reply no longer than the
drafter usually takes (`core/liveness/patience.py`); then it goes on without drafts, and so do those after it until the
drafter has answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from minedraft.core import events
from minedraft.core.draft_book import DraftBook
from minedraft.core.liveness.patience import DraftPatience
from minedraft.core.rounds import RoundPlan
from minedraft.core.running_ahead import plan_runs
from minedraft.core.scheduler import Scheduler
from minedraft.engine.failing import MAX_FAILURES, failed_command, loss_cause
from minedraft.engine.mirrors import check_balance, make_book
from minedraft.engine.workers import Drafter
from minedraft.errors import ChannelFailed, MineDraftError, WorkerLost
from minedraft.messages import DraftReply, DraftSpan, Proposal, VerifySpan
from minedraft.types import Role, RoundId

logger = logging.getLogger("minedraft.pipeline")


class Drafting:
    """Sends the drafter its commands and keeps its book in the scheduler.

    Args:
        publish: passes an event to the observers.
        wake: makes both lanes check again for work.

    Attributes:
        drafter: the present drafter; None while there is none.
        patience: how long a round waits for it.
    """

    def __init__(self, scheduler: Scheduler, publish: Callable[[events.Event], None], wake: Callable[[], None]) -> None:
        self.drafter: Drafter | None = None
        self._scheduler = scheduler
        self._publish = publish
        self._wake = wake
        self.patience = DraftPatience()
        self._num_failures = 0  # in a row
        self._probe: asyncio.Task[None] | None = None  # runs while the drafter is late

    async def draft(self, plan: RoundPlan) -> Sequence[Proposal]:
        """Return the proposals of a round; none if there is no drafter or its command fails."""
        reply = await self._ask(plan, plan.drafts, is_prefill=False) if plan.drafts else None
        return reply.proposals if reply is not None else ()

    def has_prefill(self, plan: RoundPlan) -> bool:
        """Whether `prefill` has anything to send."""
        if self._probe is not None:
            return False
        if plan.prefills or plan.drafts:
            return bool(plan.prefills)
        book = self._scheduler.book
        return self.drafter is not None and book is not None and book.kv.has_releases

    async def prefill(self, plan: RoundPlan) -> None:
        """Let the drafter cache the committed tokens it lacks. A round without a drafter command sends its
        pending releases: a preempted request may wait for them."""
        if plan.prefills:
            await self._ask(plan, plan.prefills, is_prefill=True)
        elif not plan.drafts:
            await self.release()

    async def run_ahead(self, plan: RoundPlan, spans: Sequence[VerifySpan]) -> None:
        """Let the drafter run ahead of the drafts in `spans`, which are being verified, and do what `prefill` does."""
        runs = plan_runs(plan, spans) if plan.book is self._scheduler.book else ()
        if runs:
            await self._ask(plan, plan.prefills + runs, is_prefill=True)
        else:
            await self.prefill(plan)

    async def release(self) -> bool:
        """Send the releases that no command has carried. Return whether there were any."""
        drafter, book = self.drafter, self._scheduler.book
        if drafter is None or book is None or self._probe is not None or not book.kv.has_releases:
            return False
        await self._release(drafter, book, self.patience.limit_s)
        return True

    def lose(self, error: MineDraftError) -> None:
        """Go on without drafts."""
        if self.drafter is not None:
            logger.warning("drafter lost, continuing without drafts: %s", error)
            self._publish(events.WorkerLeft(Role.DRAFTER, str(error), replace(self.drafter.stats), loss_cause(error)))
            self.drafter = None
            self.close()
            self._scheduler.detach_drafter()
            self._wake()

    def gain(self, drafter: Drafter) -> None:
        """Draft with `drafter`, whose worker knows no request yet."""
        assert self.drafter is None, "the lost drafter is dropped first"
        self.drafter, self.patience = drafter, DraftPatience()
        self._num_failures = 0
        self._scheduler.attach_drafter(make_book(drafter.info))
        self._publish(events.WorkerJoined(drafter.info))
        self._wake()

    def close(self) -> None:
        """Wait for a late drafter no longer."""
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    async def _ask(self, plan: RoundPlan, spans: tuple[DraftSpan, ...], *, is_prefill: bool) -> DraftReply | None:
        drafter, book = self.drafter, plan.book
        if drafter is None or book is None or book is not self._scheduler.book or self._probe is not None:
            return None
        round_id = RoundId(drafter.info.epoch, plan.batch, plan.number)
        command = book.command(round_id, spans, self._scheduler.limits.scores)
        try:
            reply = await self._in_time(drafter.prefill(command) if is_prefill else drafter.draft(command))
        except TimeoutError:
            # It may still execute the command: what comes after it in the same stream introduces the requests anew.
            book.refused(command, None)
            self._on_late(drafter, book)
            return None
        except MineDraftError as error:
            book.refused(command, error.request_id)
            if isinstance(error, ChannelFailed):  # the features that no command has carried are as lost as these
                book.drop_features()
            self._on_error(drafter, error, plan)
            return None
        self._num_failures = 0
        if book.executed(command, reply.proposals):
            self._wake()  # blocks are free now, in either lane
        is_ahead = any(span.ahead is not None for span in spans)
        is_prefill = is_prefill and not is_ahead
        self._publish(events.Drafted(plan.batch, plan.number, reply.timing, is_prefill, is_ahead))
        if reply.num_not_finite:
            self._publish(events.DraftsNotFinite(plan.batch, plan.number, reply.num_not_finite))
        return reply

    async def _in_time(self, reply: Awaitable[DraftReply]) -> DraftReply:
        """Return the reply to a command. Raise TimeoutError if it takes too long."""
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        async with asyncio.timeout(self.patience.limit_s):
            in_time = await reply
        self.patience.answered(loop.time() - sent_s)
        return in_time

    async def _release(self, drafter: Drafter, book: DraftBook, limit_s: float | None) -> None:
        """Send the releases that no command has carried, if need be none."""
        released = book.kv.take_releases()
        try:
            async with asyncio.timeout(limit_s):
                num_free = await drafter.release(released)
        except TimeoutError:
            book.kv.return_releases(released)
            self._on_late(drafter, book)
        except asyncio.CancelledError:
            book.kv.return_releases(released)
            raise
        except MineDraftError as error:
            book.kv.return_releases(released)
            self._on_error(drafter, error, None)
        else:
            self._num_failures = 0
            book.kv.acknowledge(released)
            self._wake()
            check_balance(Role.DRAFTER, self._scheduler, book.kv, num_free)

    def _on_late(self, drafter: Drafter, book: DraftBook) -> None:
        """Ask nothing of the drafter until it has answered: a release, which comes after all that it owes."""
        if drafter is not self.drafter or self._probe is not None:
            return
        waited_s = self.patience.limit_s
        logger.warning("no reply of the drafter within %.1f s, rounds have no drafts until it answers", waited_s)
        self._publish(events.DrafterLate(waited_s))
        self.patience.late()
        self._probe = asyncio.get_running_loop().create_task(self._await_answer(drafter, book), name="late-drafter")

    async def _await_answer(self, drafter: Drafter, book: DraftBook) -> None:
        await self._release(drafter, book, None)
        if drafter is self.drafter:
            self._probe = None
            self._wake()

    def _on_error(self, drafter: Drafter, error: MineDraftError, plan: RoundPlan | None) -> None:
        if drafter is not self.drafter:  # the other lane has found it lost
            return
        if isinstance(error, WorkerLost):
            self.lose(error)
            return
        self._publish(failed_command(Role.DRAFTER, plan, error))
        self._num_failures += error.request_id is None and not isinstance(error, ChannelFailed)
        if self._num_failures >= MAX_FAILURES:
            drafter.give_up(f"{MAX_FAILURES} commands failed in a row, the last: {error}")
            self.lose(error)
