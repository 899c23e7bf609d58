"""The service's own limits, lent to one client at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from minedraft.core.limits import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import Draining, Unavailable
from minedraft.types import LoanTerms


class Lent:
    """What a borrower can do while the loan lasts."""

    def __init__(self, pipeline: Pipeline, own: SchedulerLimits) -> None:
        self._pipeline = pipeline
        self._own = own

    async def apply(self, terms: LoanTerms) -> None:
        """Run with these terms, under live requests. Returns when the batches are as the terms say."""
        self._pipeline.reconfigure(self._own.lent(terms), "borrowed")
        await self._pipeline.settled()


class Lending:
    """Lends one pipeline; its limits are taken now, and come back after every loan."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._own = pipeline.scheduler.limits
        self._loan: asyncio.Timeout | None = None  # set while somebody has it

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Lent]:
        """The loan; a block that ends well has waited until the own limits hold again.

        Raises:
            Unavailable: another client has it. Draining: `end` was called meanwhile.
        """
        if self._loan is not None:
            raise Unavailable("another client has borrowed the service; it is free when that one ends or hangs up")
        try:
            self._pipeline.is_lent = True
            async with asyncio.timeout(None) as self._loan:  # without end, unless `end` sets one
                yield Lent(self._pipeline, self._own)
        except TimeoutError:
            raise Draining("the service is draining: it cannot be borrowed any longer") from None
        finally:
            self._loan = None
            if self._pipeline.scheduler.limits is not self._own:
                self._pipeline.reconfigure(self._own, "the loan has ended")
            self._pipeline.is_lent = False
        await self._pipeline.settled()

    def end(self) -> None:
        """End the loan, if there is one: the service drains."""
        if self._loan is not None and not self._loan.expired():
            self._loan.reschedule(asyncio.get_running_loop().time())
