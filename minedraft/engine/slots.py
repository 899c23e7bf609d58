"""The slots of the two workers: a worker joins, is lost, and joins again."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Generic, Protocol, TypeVar

from minedraft.core.limits import RETRY_AFTER_LOSS_S
from minedraft.engine.pipeline import Pipeline
from minedraft.engine.workers import Drafter, Verifier, Worker
from minedraft.errors import ConfigError, MineDraftError, ModelError, WorkerLost
from minedraft.messages import WorkerInfo
from minedraft.types import NO_RUNNING_AHEAD, Mode

logger = logging.getLogger("minedraft.server")

_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 1.0

WorkerT = TypeVar("WorkerT", bound=Worker)


def _wait_on(error: MineDraftError) -> None:
    """Do nothing: the service goes on without the worker."""


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
        stop_waiting: called if the worker stays away for `patience_s` seconds; the slot goes on trying.
    """

    def __init__(
        self,
        name: str,
        lose: Callable[[MineDraftError], None],
        gain: Callable[[WorkerT], None],
        reconnect: Callable[[], Awaitable[WorkerT]],
        *,
        stop_waiting: Callable[[MineDraftError], None] = _wait_on,
        patience_s: float = math.inf,
    ) -> None:
        self.state = SlotState.READY
        self._name = name
        self._lose = lose
        self._gain = gain
        self._reconnect = reconnect
        self._stop_waiting = stop_waiting
        self._patience_s = patience_s

    async def run(self, worker: WorkerT | None) -> None:
        """Serve the slot until cancelled, then close its present worker. None: it is lost already."""
        loss = WorkerLost("it was never there")
        try:
            while True:
                if worker is None:
                    self.state = SlotState.LOST
                    worker = await self._take_back(loss)
                    self.state = SlotState.READY
                    logger.warning("%s is back: %s", self._name, worker.info.model_name)
                    self._gain(worker)
                await worker.lost.wait()
                assert worker.lost_error is not None, "set before the event"
                loss = worker.lost_error
                self._lose(loss)
                await worker.close()
                worker = None
        finally:
            if worker is not None:
                await worker.close()

    async def _take_back(self, loss: WorkerLost) -> WorkerT:
        delay_s, last_cause = _FIRST_RETRY_S, ""
        loop = asyncio.get_running_loop()
        gives_up_s = loop.time() + self._patience_s
        while True:
            await asyncio.sleep(min(delay_s, max(gives_up_s - loop.time(), 0.0)))
            if loop.time() >= gives_up_s:
                gives_up_s = math.inf
                self._lose_patience(loss)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)
            try:
                return await self._reconnect()
            except MineDraftError as error:
                if str(error) != last_cause:  # once for each cause, not every second
                    logger.warning("%s not back yet: %s", self._name, error)
                    last_cause = str(error)

    def _lose_patience(self, loss: WorkerLost) -> None:
        what = f"the {self._name} has not come back within {self._patience_s:g} s ({loss})"
        logger.error("%s: requests end, and are refused until it is back", what)
        self._stop_waiting(WorkerLost(what, RETRY_AFTER_LOSS_S, cause=loss.cause))


def drafter_slot(pipeline: Pipeline, connector: Connector) -> WorkerSlot[Drafter]:
    """Return the drafter's slot: while it is empty, the pipeline decodes without drafts."""

    async def reconnect() -> Drafter:
        drafter = await connector.reconnect_drafter(pipeline.verifier.info)
        await _close_unless(drafter, lambda: check(drafter.info))
        return drafter

    def check(info: WorkerInfo) -> None:
        check_drafter(info, pipeline.verifier.info)
        check_mode(pipeline.scheduler.limits.mode, info)

    return WorkerSlot("drafter", pipeline.lose_drafter, pipeline.gain_drafter, reconnect)


def verifier_slot(pipeline: Pipeline, connector: Connector, patience_s: float = math.inf) -> WorkerSlot[Verifier]:
    """Return the verifier's slot: while it is empty, the requests wait, `patience_s` seconds at most."""

    async def reconnect() -> Verifier:
        verifier = await connector.reconnect_verifier()
        await _close_unless(verifier, lambda: check(verifier.info))
        return verifier

    def check(info: WorkerInfo) -> None:
        check_successor(info, pipeline.verifier.info, pipeline.scheduler.limits.max_model_len)
        if pipeline.drafter is not None:
            check_drafter(pipeline.drafter.info, info)

    return WorkerSlot(
        "verifier",
        pipeline.lose_verifier,
        pipeline.gain_verifier,
        reconnect,
        stop_waiting=pipeline.stop_waiting,
        patience_s=patience_s,
    )


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


def check_mode(mode: Mode, drafter: WorkerInfo) -> None:
    """Raise ConfigError if the drafter cannot do what the mode is: which one it is shows when it answers, if it was
    started elsewhere."""
    if mode.runs_ahead and not drafter.can_run_ahead:
        raise ConfigError("mode", mode.value, f"{NO_RUNNING_AHEAD} ({drafter.model_name} drafts)")


def check_successor(verifier: WorkerInfo, last: WorkerInfo, max_model_len: int) -> None:
    """Raise ModelError unless a verifier can go on with the requests of the last one: it has the same model in the
    same precision, and contexts of `max_model_len` tokens. Its KV cache may be smaller: a request that it could never
    hold ends when the verifier joins."""
    if (verifier.vocab_fingerprint, verifier.vocab_size) != (last.vocab_fingerprint, last.vocab_size):
        limit = f"its vocabulary differs from that of the last verifier ({last.model_name})"
        raise ModelError("target", verifier.model_name, limit)
    if verifier.model_name != last.model_name:
        raise ModelError("target", verifier.model_name, f"the requests were begun with {last.model_name}")
    for what in ("dtype", "weights_bytes", "is_batch_invariant"):
        found, wanted = getattr(verifier, what), getattr(last, what)
        if found != wanted:
            raise ModelError("target", verifier.model_name, f"its {what} is {found}, the last verifier's was {wanted}")
    if verifier.max_model_len < max_model_len:
        limit = f"its context is {verifier.max_model_len} tokens, this service serves {max_model_len}"
        raise ModelError("target", verifier.model_name, limit)


async def _close_unless(worker: Worker, check: Callable[[], None]) -> None:
    """Raise what `check` raises, with the link closed."""
    try:
        check()
    except MineDraftError:
        await worker.close()
        raise
