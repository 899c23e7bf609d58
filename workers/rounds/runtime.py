"""The runtime of both workers: one thread that owns the device, and rounds that run at most once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from minedraft.errors import MineDraftError, StaleRound
from minedraft.messages import ConfigureCommand, WorkerInfo
from minedraft.types import Batch, RoundId
from minedraft_workers.rounds.actors import Actor, Cores, OwnCores, Work
from minedraft_workers.rounds.device_thread import MAILBOX_SIZE, CommandResult, DeviceThread, WorkerProgress
from minedraft_workers.rounds.round_log import RoundLog
from minedraft_workers.rounds.tenancy import Tenancy

# A forward has no time limit, but a thread that is inside one and computes nothing for this long hangs: whether it
# waits for ever or spins.
HANG_S = 30.0
_LOOKS = 8  # per HANG_S


class WorkerRuntime:
    """Executes each round of the present epoch at most once, and answers a repeat with the stored result.

    Call its methods in the event loop.

    Attributes:
        crashed: set when the process must exit with 70.
        tenancy: the scheduler that uses the worker.
    """

    def __init__(self, actor: Actor, mailbox_size: int = MAILBOX_SIZE, cores: Cores | None = None) -> None:
        self.crashed = asyncio.Event()
        self.info = actor.info
        self.tenancy = Tenancy()
        self._actor = actor
        self._cores = cores or OwnCores()
        self._device = DeviceThread(actor, self.crashed.set, mailbox_size)
        # Random high bits, so that no earlier process has used the same epoch.
        self._log: RoundLog[asyncio.Future[CommandResult]] = RoundLog((secrets.randbits(43) + 1) << 20)

    @property
    def epoch(self) -> int:
        return self._log.epoch

    async def prepare(self, task: Callable[[], None]) -> None:
        """Run a task in the device thread, before the first command.

        Raises:
            MemoryExhausted, InvalidRequest, ProtocolError: as the task. InternalError: it raised anything else,
                and the thread has crashed.
        """

        def prepare() -> Work[Any]:
            task()
            return Work(())

        outcome = await self._device.offer(prepare)
        if isinstance(outcome, MineDraftError):
            raise outcome

    def start_epoch(self, target_vocab_size: int = 0) -> WorkerInfo:
        """Begin a new epoch, even during a forward: queued commands are dropped, and the actor is reset before
        any command of the new epoch. Return the info with the new epoch."""
        self._log.begin_epoch()
        self._device.drop_queued(StaleRound(f"epoch {self.epoch} has begun"))

        def reset() -> Work[Any]:
            self._cores.reset()
            self._actor.reset(target_vocab_size)
            return Work(())

        self._device.offer(reset)
        return replace(self.info, epoch=self.epoch)

    def submit(self, method: str, round_id: RoundId, task: Callable[[], Work[Any]]) -> asyncio.Future[CommandResult]:
        """Run a command's task, unless the same round has run or is running. Return the future of the result,
        which may be an error. Never cancel the future: a repeat may need it.

        Raises:
            StaleRound: the round is of another epoch, or before the last one; nothing is executed.
            Overloaded: the mailbox is full. InternalError: the device thread has crashed.
        """
        reply = self._log.find(method, round_id)
        if reply is None:
            reply = self._device.offer(task)
            self._log.store(method, round_id, reply)
        return reply

    def submit_release(self, epoch: int, request_ids: Sequence[int]) -> asyncio.Future[CommandResult]:
        """Free KV outside a round. Raise as `submit`."""
        self._log.check_epoch(epoch)

        def task() -> Work[Any]:
            self._actor.release(request_ids)
            return Work(())

        return self._device.offer(task)

    def submit_configure(self, command: ConfigureCommand) -> asyncio.Future[CommandResult]:
        """Change the cores between two rounds, at most once per number. Return and raise as `submit`."""

        def task() -> Work[Any]:
            self._cores.change(command.cores)
            return Work(())

        # The log knows these commands as rounds of a method of their own.
        return self.submit("configure", RoundId(command.epoch, Batch.A, command.number), task)

    @property
    def num_open(self) -> int:
        """Commands submitted and not answered yet."""
        return self._device.num_open

    @property
    def progress(self) -> WorkerProgress:
        """How far the worker has got, for those who watch it: it hangs if it is not idle and the count stands still."""
        return self._device.progress

    async def watch(self, hang_s: float = HANG_S) -> None:
        """Set `crashed` if the device thread hangs, then return. See `DeviceThread.end_if_hung`."""
        while not self._device.end_if_hung(hang_s):  # noqa: ASYNC110 - a hang is the absence of events
            await asyncio.sleep(hang_s / _LOOKS)

    def stop(self, timeout_s: float) -> bool:
        """End the device thread. Return False if it is still inside a forward after `timeout_s`."""
        return self._device.stop(timeout_s)
