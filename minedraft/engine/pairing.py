"""Joins the two workers by a carrier of tensors, anew whenever one of them is replaced.

Until both have taken every step, and after a failure, tensors travel in messages. So a carrier can neither hold up
nor end anything but itself.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from minedraft.carriers import AUTO_CARRIER, Carrier, ChannelCommand, ChannelStep, common_carriers
from minedraft.engine.slots import Connector
from minedraft.engine.workers import Drafter, Verifier, Worker
from minedraft.errors import ChannelFailed, MineDraftError
from minedraft.messages import WorkerInfo

logger = logging.getLogger("minedraft.server")

STEP_TIMEOUT_S = 15.0
LEAST_BYTES = 4096
"""With AUTO_CARRIER, smaller tensors travel in messages, where they cost less (scripts/results/channels.json)."""


class PairingConnector:
    """A `Connector` whose workers are joined when the second of them connects.

    Args:
        choice: the setting `channel`.
    """

    def __init__(self, connector: Connector, choice: str = AUTO_CARRIER) -> None:
        self._connector = connector
        self._choice = choice
        self._verifier: Verifier | None = None
        self._drafter: Drafter | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect_verifier(self) -> Verifier:
        self._verifier = await self._connector.connect_verifier()
        return self._verifier

    async def connect_drafter(self, verifier: WorkerInfo) -> Drafter | None:
        self._drafter = drafter = await self._connector.connect_drafter(verifier)
        if drafter is not None:
            await self._join_or_close(drafter)
        return drafter

    async def reconnect_verifier(self) -> Verifier:
        self._verifier = verifier = await self._connector.reconnect_verifier()
        await self._join_or_close(verifier)
        return verifier

    async def reconnect_drafter(self, verifier: WorkerInfo) -> Drafter:
        self._drafter = drafter = await self._connector.reconnect_drafter(verifier)
        await self._join_or_close(drafter)
        return drafter

    async def _join_or_close(self, worker: Worker) -> None:
        """Join the workers, of which `worker` is the new one; nobody else knows its link yet."""
        try:
            await self._join()
        except BaseException:  # cancelled
            await worker.close()
            raise

    async def _join(self) -> None:
        """Join the present workers by the fastest carrier that works; a lost worker is not this function's affair."""
        verifier, drafter = self._verifier, self._drafter
        if verifier is None or drafter is None or verifier.lost.is_set() or drafter.lost.is_set():
            return
        verifier.stats.carrier = drafter.stats.carrier = Carrier.INLINE
        if self._choice == Carrier.INLINE.value:
            return
        candidates = common_carriers(self._choice, verifier.info.channels, drafter.info.channels)
        if not candidates and self._choice != AUTO_CARRIER:
            logger.warning("the workers cannot be joined by %s, tensors travel in messages", self._choice)
        for carrier in candidates:
            try:
                await self._join_by(carrier, verifier, drafter)
            except (MineDraftError, TimeoutError) as error:
                if verifier.lost.is_set() or drafter.lost.is_set():
                    return
                cause = str(error) or f"no answer within {STEP_TIMEOUT_S:g} s"
                logger.warning("the workers cannot be joined by %s: %s", carrier.value, cause)
                continue
            verifier.stats.carrier = drafter.stats.carrier = carrier
            logger.info("tensors travel between the workers by %s", carrier.value)
            return

    async def _join_by(self, carrier: Carrier, verifier: Verifier, drafter: Drafter) -> None:
        """Take all steps to a carrier.

        Raises:
            MineDraftError: a worker refuses one, or is lost. TimeoutError: it does not answer.
        """
        workers = (verifier, drafter)
        opens = ChannelCommand(ChannelStep.OPEN, carrier)
        async with asyncio.timeout(STEP_TIMEOUT_S):
            ends = await asyncio.gather(*(worker.prepare_channel(opens) for worker in workers))
        joins = [ChannelCommand(ChannelStep.JOIN, carrier, peer) for peer in reversed(ends)]
        async with asyncio.timeout(STEP_TIMEOUT_S):  # at the same time: each may wait for the other
            pairs = zip(workers, joins, strict=True)
            await asyncio.gather(*(worker.prepare_channel(join) for worker, join in pairs))
        for worker in workers:
            worker.on_channel_failure = partial(self._on_failure, verifier, drafter)
        verifier.stats.carrier = drafter.stats.carrier = carrier
        least_bytes = LEAST_BYTES if self._choice == AUTO_CARRIER else 0
        async with asyncio.timeout(STEP_TIMEOUT_S):
            uses = ChannelCommand(ChannelStep.USE, carrier, least_bytes=least_bytes)
            await asyncio.gather(*(worker.prepare_channel(uses) for worker in workers))

    def _on_failure(self, verifier: Verifier, drafter: Drafter, cause: str) -> None:
        """Let both workers send in messages again. What is under way by the carrier can still arrive."""
        failed = verifier.stats.carrier
        if failed is Carrier.INLINE:  # the other worker has told it
            return
        verifier.stats.carrier = drafter.stats.carrier = Carrier.INLINE
        logger.warning("%s fails between the workers, tensors travel in messages from now on: %s", failed.value, cause)
        task = asyncio.get_running_loop().create_task(self._send_inline(verifier, drafter))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_inline(self, verifier: Verifier, drafter: Drafter) -> None:
        inline = ChannelCommand(ChannelStep.USE, Carrier.INLINE)
        workers = (verifier, drafter)
        for result in await asyncio.gather(*(w.prepare_channel(inline) for w in workers), return_exceptions=True):
            if isinstance(result, ChannelFailed):
                logger.error("a worker cannot go back to messages: %s", result)
