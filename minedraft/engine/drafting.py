"""The drafter's part in the rounds: there while it is, left out while it is not.

The drafter is an accelerator, not a dependency. A command that it refuses costs that round its drafts; a
loss costs drafts until a new link is brought; neither costs a request anything else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from minedraft.core.draft_book import DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.core.rounds import RoundPlan
from minedraft.core.scheduler import Scheduler
from minedraft.engine.workers import Drafter
from minedraft.errors import MineDraftError, WorkerLost
from minedraft.types import DraftCommand, DraftReply, DraftSpan, Proposal, RoundId, Timing, WorkerInfo

logger = logging.getLogger("minedraft.engine.pipeline")

MAX_FAILURES = 3
"""Failed commands in a row that name no request at fault; the worker itself is, then."""


class Drafting:
    """Asks the drafter, and keeps its book in the scheduler.

    Args:
        wake: makes the lanes look again at what they can do.

    Attributes:
        drafter: None while there is none.
        info: of the drafter, or of the last one.
    """

    def __init__(self, scheduler: Scheduler, drafter: Drafter | None, wake: Callable[[], None]) -> None:
        self.drafter: Drafter | None = None
        self.info: WorkerInfo | None = None
        self._scheduler = scheduler
        self._wake = wake
        self._num_failures = 0  # in a row
        if drafter is not None:
            self._take(drafter)

    async def draft(self, plan: RoundPlan) -> tuple[Sequence[Proposal], Timing | None]:
        """The proposals of a round, none where the drafter does not deliver."""
        if not plan.drafts:
            return (), None
        reply = await self._ask(plan, plan.drafts, "draft")
        return (reply.proposals, reply.timing) if reply is not None else ((), None)

    async def prefill(self, plan: RoundPlan) -> None:
        """Let the drafter cache the prompts that the verifier is caching now. A round that asks nothing
        of it tells it at least what has ended: a preempted request waits for that."""
        if plan.prefills:
            await self._ask(plan, plan.prefills, "prefill")
        elif not plan.drafts:
            await self.release()

    async def release(self) -> bool:
        """Send releases that no command has carried; True when there were any."""
        drafter, book = self.drafter, self._scheduler.book
        if drafter is None or book is None or not (released := book.kv.take_releases()):
            return False
        try:
            num_free = await drafter.release(released)
        except MineDraftError as error:
            book.kv.return_releases(released)
            self._on_error(drafter, error)
            return True
        self._on_success(book, released)
        check_balance("drafter", self._scheduler, book.kv, num_free)
        return True

    def lose(self, error: MineDraftError) -> None:
        """Go on without drafts."""
        if self.drafter is not None:
            logger.warning("drafter lost, going on without drafts: %s", error)
            self.drafter = self._scheduler.book = None
            self._wake()

    def gain(self, drafter: Drafter) -> None:
        """Draft again: `drafter` is a new link, whose worker knows no request yet."""
        assert self.drafter is None, "the lost one is dropped first"
        logger.warning("drafting again with %s", drafter.info.model_name)
        self._take(drafter)
        self._wake()

    def _take(self, drafter: Drafter) -> None:
        self.drafter, self.info = drafter, drafter.info
        self._scheduler.book = DraftBook(make_ledger(drafter.info), drafter.info.vocab_size)
        self._num_failures = 0

    async def _ask(self, plan: RoundPlan, spans: tuple[DraftSpan, ...], kind: str) -> DraftReply | None:
        drafter, book = self.drafter, plan.book
        if drafter is None or book is None or book is not self._scheduler.book:
            return None
        released = book.kv.take_releases()
        command = DraftCommand(RoundId(drafter.info.epoch, plan.batch, plan.number), spans, released)
        try:
            reply = await (drafter.draft(command) if kind == "draft" else drafter.prefill(command))
        except MineDraftError as error:
            book.kv.return_releases(released)
            book.refused(spans, error.request_id)
            self._on_error(drafter, error)
            return None
        book.executed(spans)
        self._on_success(book, released)
        return reply

    def _on_success(self, book: DraftBook, released: tuple[int, ...]) -> None:
        self._num_failures = 0
        if released:
            book.kv.acknowledge(released)
            self._wake()  # blocks are free now, in either lane

    def _on_error(self, drafter: Drafter, error: MineDraftError) -> None:
        if drafter is not self.drafter:  # lost meanwhile, by the other lane
            return
        if isinstance(error, WorkerLost):
            self.lose(error)
            return
        self._scheduler.counters.failed_commands += 1
        logger.warning("the drafter failed a command, its round has no drafts: %s", error)
        self._num_failures += error.request_id is None
        if self._num_failures >= MAX_FAILURES:
            drafter.give_up(f"{MAX_FAILURES} commands failed in a row, the last: {error}")
            self.lose(error)


def make_ledger(info: WorkerInfo) -> KvLedger:
    """The scheduler's mirror of a worker's KV."""
    return KvLedger(info.num_blocks, info.block_size, info.max_model_len)


def check_balance(role: str, scheduler: Scheduler, ledger: KvLedger, num_free: int) -> None:
    """With nothing live the worker must have every block back."""
    if not scheduler.requests and not ledger.pool.owners and num_free != ledger.num_blocks:
        logger.error("%s leaks KV: %d of %d blocks free while idle", role, num_free, ledger.num_blocks)
