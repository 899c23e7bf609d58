"""The places of the two workers: a worker comes, is lost, and comes back."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from minedraft.engine.pipeline import Pipeline
from minedraft.engine.workers import Drafter, Verifier
from minedraft.errors import MineDraftError, ModelError
from minedraft.types import WorkerInfo

logger = logging.getLogger("minedraft.server")

_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 5.0


class Connector(Protocol):
    """Makes links. Both wait for a worker that is still loading; the caller sets the deadline."""

    async def connect_verifier(self) -> Verifier: ...

    async def connect_drafter(self, verifier: WorkerInfo) -> Drafter | None:
        """None where the settings have no drafter."""
        ...

    async def reconnect_drafter(self, verifier: WorkerInfo) -> Drafter:
        """A new link to a drafter that was there before; does not wait for long.

        Raises:
            MineDraftError: it is not there, or not to be used.
        """
        ...


def check_drafter(drafter: WorkerInfo, verifier: WorkerInfo) -> None:
    """Raise ModelError unless token ids mean the same to both; padded output layers may differ in size."""
    if drafter.vocab_fingerprint != verifier.vocab_fingerprint:
        raise ModelError("draft", drafter.model_name, f"its tokenizer is not that of the target {verifier.model_name}")


class DrafterSlot:
    """Keeps a drafter in the pipeline: drops one that is lost at once, and takes it back when it answers
    again, be it the same process after a pause or a new one at the same address."""

    def __init__(self, pipeline: Pipeline, connector: Connector) -> None:
        self._pipeline = pipeline
        self._connector = connector

    async def run(self, drafter: Drafter) -> None:
        """Until cancelled; the drafter of the moment is closed then."""
        try:
            while True:
                await drafter.lost.wait()
                assert drafter.lost_error is not None, "set before the event"
                self._pipeline.lose_drafter(drafter.lost_error)
                await drafter.close()
                drafter = await self._take_back()
                self._pipeline.gain_drafter(drafter)
        finally:
            await drafter.close()

    async def _take_back(self) -> Drafter:
        verifier = self._pipeline.verifier.info
        delay_s, last_cause = _FIRST_RETRY_S, ""
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)
            drafter: Drafter | None = None
            try:
                drafter = await self._connector.reconnect_drafter(verifier)
                check_drafter(drafter.info, verifier)
                return drafter
            except MineDraftError as error:
                if drafter is not None:
                    await drafter.close()
                if str(error) != last_cause:  # once for each cause, not every five seconds
                    logger.info("no drafter yet: %s", error)
                    last_cause = str(error)


async def fail_when_lost(pipeline: Pipeline, verifier: Verifier) -> None:
    """Tell the pipeline at once when the verifier goes, also while nothing is asked of it."""
    await verifier.lost.wait()
    assert verifier.lost_error is not None, "set before the event"
    pipeline.fail(verifier.lost_error)
