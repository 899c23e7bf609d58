"""The runtime of both workers: one thread that owns the device, and the sessions of the schedulers that it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from minedraft.errors import MineDraftError
from minedraft.messages import WorkerInfo
from minedraft_workers.rounds.actors import Actor, Cores, OwnCores, Work
from minedraft_workers.rounds.device_thread import MAILBOX_SIZE, DeviceThread, WorkerProgress
from minedraft_workers.rounds.session import Session
from minedraft_workers.rounds.tenancy import Tenancy

logger = logging.getLogger("minedraft.worker")

# A forward has no time limit, but a thread that is inside one and computes nothing for this long hangs: whether it
# waits for ever or spins.
HANG_S = 30.0
# The same where no scheduler waits for the command any more: the last one has found that the worker hangs.
ABANDONED_S = 5.0
_LOOKS = 8  # in the shorter of these times


class WorkerRuntime:
    """Owns the sessions of a worker over one device thread, which takes their commands in turn.

    Call its methods in the event loop.

    Args:
        actor: of the first session.
        mailbox_size: commands of a session that may wait.
        cores: what the worker computes on; they change for the scheduler of a worker with one session only.
        others: the actors of further sessions. They share the model with the first, and nothing else.

    Attributes:
        crashed: set when the process must exit with 70.
        sessions: one for each scheduler that the worker can serve at once.
        tenancy: the schedulers that use the worker.
    """

    def __init__(
        self,
        actor: Actor,
        mailbox_size: int = MAILBOX_SIZE,
        cores: Cores | None = None,
        others: Sequence[Actor] = (),
    ) -> None:
        assert cores is None or not others, "the cores of a shared worker do not change"
        actors = (actor, *others)
        self.crashed = asyncio.Event()
        self._device = DeviceThread(actors, self.crashed.set, mailbox_size)
        self.sessions = tuple(
            Session(number, each, self._device, cores or OwnCores()) for number, each in enumerate(actors)
        )
        self.tenancy = Tenancy(len(actors))

    @property
    def info(self) -> WorkerInfo:
        """The worker as the first session sees it."""
        return self.sessions[0].info

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

    @property
    def num_open(self) -> int:
        """Commands submitted and not answered yet."""
        return self._device.num_open

    @property
    def progress(self) -> WorkerProgress:
        """How far the worker has got, for those who watch it: it hangs if it is not idle and the count stands still."""
        return self._device.progress

    async def watch(self, hang_s: float = HANG_S, abandoned_s: float = ABANDONED_S) -> None:
        """Set `crashed` if the device thread hangs, then return. See `DeviceThread.end_if_hung`."""
        period_s = min(hang_s, abandoned_s) / _LOOKS
        while True:
            limit_s = hang_s if self.tenancy.tenants else abandoned_s
            if self._device.end_if_hung(limit_s, longest_gap_s=2 * period_s):
                return
            await asyncio.sleep(period_s)

    def fail(self, error: BaseException) -> None:
        """End the worker: its event loop has failed."""
        if not self.crashed.is_set():
            logger.critical("the event loop failed, exiting: %s", type(error).__name__, exc_info=error)
            self.crashed.set()

    def stop(self, timeout_s: float) -> bool:
        """End the device thread. Return False if it is still inside a forward after `timeout_s`."""
        return self._device.stop(timeout_s)
