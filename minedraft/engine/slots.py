"""The slots of the two workers: a worker joins, is lost, and joins again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Generic, Protocol, TypeVar

from minedraft.engine.pipeline import Pipeline
from minedraft.engine.workers import Drafter, Verifier, Worker
from minedraft.errors import MineDraftError, ModelError
from minedraft.messages import WorkerInfo

logger = logging.getLogger("minedraft.server")

_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 5.0

WorkerT = TypeVar("WorkerT", bound=Worker)


class Connector(Protocol):
    """Makes links. The `connect` methods wait for a worker that is still loading; the caller sets the deadline."""

    async def connect_verifier(self) -> Verifier: ...

    async def connect_drafter(self, verifier: WorkerInfo) -> Drafter | None:
        """Return None if the settings have no drafter."""
        ...

    async def reconnect_verifier(self) -> Verifier:
        """Return a new link to a verifier that was lost; gives up after seconds.

        Raises:
            MineDraftError: the verifier cannot be reached or used.
        """
        ...

    async def reconnect_drafter(self, verifier: WorkerInfo) -> Drafter:
        """Return a new link to a drafter, like `reconnect_verifier`."""
        ...


class SlotState(str, Enum):
    """The state of a slot's worker."""

    READY = "ready"
    LOST = "lost"  # the slot tries to reconnect


class WorkerSlot(Generic[WorkerT]):
    """Keeps a worker in the pipeline: drops it as soon as it is lost, and takes it back when it answers
    again, whether it is the same process after a pause or a new one at the same address.

    Args:
        name: for the log.
        lose, gain: tell the pipeline that the worker is lost, or back.
        reconnect: makes one attempt; raises MineDraftError if it fails.
    """

    def __init__(
        self,
        name: str,
        lose: Callable[[MineDraftError], None],
        gain: Callable[[WorkerT], None],
        reconnect: Callable[[], Awaitable[WorkerT]],
    ) -> None:
        self.state = SlotState.READY
        self._name = name
        self._lose = lose
        self._gain = gain
        self._reconnect = reconnect

    async def run(self, worker: WorkerT | None) -> None:
        """Serve the slot until cancelled, then close its present worker. None: it is lost already."""
        try:
            while True:
                if worker is None:
                    self.state = SlotState.LOST
                    worker = await self._take_back()
                    self.state = SlotState.READY
                    logger.warning("%s is back: %s", self._name, worker.info.model_name)
                    self._gain(worker)
                await worker.lost.wait()
                assert worker.lost_error is not None, "set before the event"
                self._lose(worker.lost_error)
                await worker.close()
                worker = None
        finally:
            if worker is not None:
                await worker.close()

    async def _take_back(self) -> WorkerT:
        delay_s, last_cause = _FIRST_RETRY_S, ""
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)
            try:
                return await self._reconnect()
            except MineDraftError as error:
                if str(error) != last_cause:  # once for each cause, not every five seconds
                    logger.info("%s not back yet: %s", self._name, error)
                    last_cause = str(error)


def drafter_slot(pipeline: Pipeline, connector: Connector) -> WorkerSlot[Drafter]:
    """Return the drafter's slot: while it is empty, the pipeline decodes without drafts."""

    async def reconnect() -> Drafter:
        drafter = await connector.reconnect_drafter(pipeline.verifier.info)
        await _close_unless(drafter, lambda: check_drafter(drafter.info, pipeline.verifier.info))
        return drafter

    return WorkerSlot("drafter", pipeline.lose_drafter, pipeline.gain_drafter, reconnect)


def verifier_slot(pipeline: Pipeline, connector: Connector) -> WorkerSlot[Verifier]:
    """Return the verifier's slot: while it is empty, the requests of the pipeline wait."""

    async def reconnect() -> Verifier:
        verifier = await connector.reconnect_verifier()
        await _close_unless(verifier, lambda: check(verifier.info))
        return verifier

    def check(info: WorkerInfo) -> None:
        check_successor(info, pipeline.verifier.info)
        if pipeline.drafter is not None:
            check_drafter(pipeline.drafter.info, info)

    return WorkerSlot("verifier", pipeline.lose_verifier, pipeline.gain_verifier, reconnect)


def check_drafter(drafter: WorkerInfo, verifier: WorkerInfo) -> None:
    """Raise ModelError unless token ids mean the same to both, and the verifier can deliver the features that the
    drafter reads. Padded output layers may differ in size."""
    if drafter.vocab_fingerprint != verifier.vocab_fingerprint:
        limit = f"its tokenizer differs from that of the target {verifier.model_name}"
        raise ModelError("draft", drafter.model_name, limit)
    if missing := sorted(set(drafter.feature_layers) - set(verifier.feature_layers)):
        limit = f"it reads layers {missing} of its target, which {verifier.model_name} cannot deliver"
        raise ModelError("draft", drafter.model_name, limit)
    num_delivered = len(drafter.feature_layers) * verifier.feature_size
    if drafter.feature_size != num_delivered:
        limit = f"it reads {drafter.feature_size} numbers for each token, {verifier.model_name} has {num_delivered}"
        raise ModelError("draft", drafter.model_name, limit)


def check_successor(verifier: WorkerInfo, last: WorkerInfo) -> None:
    """Raise ModelError unless a verifier can go on with the requests of the last one."""
    if (verifier.vocab_fingerprint, verifier.vocab_size) != (last.vocab_fingerprint, last.vocab_size):
        limit = f"its vocabulary differs from that of the last verifier ({last.model_name})"
        raise ModelError("target", verifier.model_name, limit)


async def fail_when_lost(pipeline: Pipeline, verifier: Verifier) -> None:
    """Fail the pipeline as soon as the verifier is lost, also while it has no command."""
    await verifier.lost.wait()
    assert verifier.lost_error is not None, "set before the event"
    pipeline.fail(verifier.lost_error)


async def _close_unless(worker: Worker, check: Callable[[], None]) -> None:
    """Raise what `check` raises, with the link closed."""
    try:
        check()
    except MineDraftError:
        await worker.close()
        raise
