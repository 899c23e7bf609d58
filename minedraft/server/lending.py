"""Lends the service to one client at a time, which may change its limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from minedraft.core.limits import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import Draining, InvalidRequest, Unavailable
from minedraft.types import NO_RUNNING_AHEAD, LoanTerms, Mode


class Lent:
    """The borrower's access to the limits while the loan lasts."""

    def __init__(self, pipeline: Pipeline, own: SchedulerLimits) -> None:
        self._pipeline = pipeline
        self._own = own

    async def apply(self, terms: LoanTerms) -> None:
        """Put these terms in force; live requests are kept. Return when the batches follow them.

        Raises:
            InvalidRequest: the drafter cannot do what the mode is.
        """
        book = self._pipeline.scheduler.book
        if terms.mode is Mode.PEARL and book is not None and not book.can_run_ahead:
            raise InvalidRequest("mode", terms.mode.value, NO_RUNNING_AHEAD)
        self._pipeline.reconfigure(self._own.lent(terms), "borrowed")
        await self._pipeline.settled()


class Lending:
    """Lends one pipeline. The limits that it has before a loan are restored after it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._loan: asyncio.Timeout | None = None  # set during a loan

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Lent]:
        """Lend the pipeline until the block ends. A block without an error ends when the own limits are in force.

        Raises:
            Unavailable: another client has borrowed it. Draining: `end` was called during the loan.
        """
        if self._loan is not None:
            raise Unavailable("another client has borrowed the service; try again when that client has ended its loan")
        own = self._pipeline.scheduler.limits
        try:
            self._pipeline.is_lent = True
            async with asyncio.timeout(None) as self._loan:  # no deadline unless `end` sets one
                yield Lent(self._pipeline, own)
        except TimeoutError:
            raise Draining("the service is draining, which ends the loan") from None
        finally:
            self._loan = None
            if self._pipeline.scheduler.limits is not own:
                self._pipeline.reconfigure(own, "the loan has ended")
            self._pipeline.is_lent = False
        await self._pipeline.settled()

    def end(self) -> None:
        """End the loan, if there is one, because the service drains."""
        if self._loan is not None and not self._loan.expired():
            self._loan.reschedule(asyncio.get_running_loop().time())
