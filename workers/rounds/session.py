"""A session: what a worker holds for one scheduler."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from minedraft.errors import InternalError, StaleRound
from minedraft.messages import ConfigureCommand, WorkerInfo
from minedraft.types import Batch, RoundId
from minedraft_workers.rounds.actors import Actor, Cores, Work
from minedraft_workers.rounds.device_thread import CommandResult, DeviceThread
from minedraft_workers.rounds.round_log import RoundLog


class Session:
    """One scheduler's epoch, stored replies, waiting commands and actor. Call its methods in the event loop.

    The actor is the session's own: its table of requests and its share of the KV blocks are, so no command can name a
    request or take a block of another session. The device thread is shared.

    Args:
        number: of its queue in the device thread.

    Attributes:
        info: the worker as this session sees it: `num_blocks` are those of its share.
    """

    def __init__(self, number: int, actor: Actor, device: DeviceThread, cores: Cores) -> None:
        self.number = number
        self._actor = actor
        self._device = device
        self._cores = cores
        # Random high bits, so that no earlier process and no other session has used the same epoch.
        self._log: RoundLog[asyncio.Future[CommandResult]] = RoundLog((secrets.randbits(43) + 1) << 20)
        self._reset_done: asyncio.Future[CommandResult] | None = None

    @property
    def info(self) -> WorkerInfo:
        return self._actor.info

    @property
    def epoch(self) -> int:
        return self._log.epoch

    def start_epoch(self, target_vocab_size: int = 0) -> WorkerInfo:
        """Begin a new epoch, even during a forward: queued commands are dropped, and the actor is reset before
        any command of the new epoch. Return the info with the new epoch."""
        self._log.begin_epoch()
        self._device.drop_queued(StaleRound(f"epoch {self.epoch} has begun"), self.number)
        self._reset_done = self._device.offer(lambda: self._reset(target_vocab_size), self.number)
        return replace(self.info, epoch=self.epoch)

    async def wait_for_device(self) -> None:
        """Return when the device has begun the present epoch: it works, and what ran before is over. Or when a newer
        epoch begins instead.

        Raises:
            InternalError: the device thread has crashed.
        """
        assert self._reset_done is not None, "an epoch has begun"
        outcome = await asyncio.shield(self._reset_done)
        if isinstance(outcome, InternalError) and not isinstance(outcome, StaleRound):
            raise outcome

    def end(self) -> None:
        """Free everything: the scheduler has gone. What it still asks for is of an epoch that has passed."""
        with suppress(InternalError):  # the device thread has crashed, and the process ends
            self.start_epoch()

    def submit(self, method: str, round_id: RoundId, task: Callable[[], Work[Any]]) -> asyncio.Future[CommandResult]:
        """Run a command's task, unless the same round has run or is running. Return the future of the result,
        which may be an error. Never cancel the future: a repeat may need it.

        Raises:
            StaleRound: the round is of another epoch, or before the last one; nothing is executed.
            Overloaded: the mailbox is full. InternalError: the device thread has crashed.
        """
        reply = self._log.find(method, round_id)
        if reply is None:
            reply = self._device.offer(task, self.number)
            self._log.store(method, round_id, reply)
        return reply

    def submit_release(self, epoch: int, request_ids: Sequence[int]) -> asyncio.Future[CommandResult]:
        """Free KV outside a round. Raise as `submit`."""
        self._log.check_epoch(epoch)

        def task() -> Work[Any]:
            self._actor.release(request_ids)
            return Work(())

        return self._device.offer(task, self.number)

    def submit_configure(self, command: ConfigureCommand) -> asyncio.Future[CommandResult]:
        """Change the cores between two rounds, at most once per number. Return and raise as `submit`."""

        def task() -> Work[Any]:
            self._cores.change(command.cores)
            return Work(())

        # The log knows these commands as rounds of a method of their own.
        return self.submit("configure", RoundId(command.epoch, Batch.A, command.number), task)

    def _reset(self, target_vocab_size: int) -> Work[Any]:
        self._cores.reset()
        self._actor.reset(target_vocab_size)
        return Work(())
