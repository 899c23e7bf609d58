"""Gives each worker the cores of the mode that is in force."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from minedraft.core import events
from minedraft.core.policy.cores import worker_cores
from minedraft.engine.workers import Worker
from minedraft.errors import MineDraftError
from minedraft.types import Mode, Role

logger = logging.getLogger("minedraft.pipeline")


class CoreSharing:
    """Follows the mode. A change that fails costs speed and nothing else; the next change of mode tries again.

    Args:
        workers: returns the present workers.
        publish: passes an event to the observers.
    """

    def __init__(self, workers: Callable[[], Iterable[Worker]], publish: Callable[[events.Event], None]) -> None:
        self._workers = workers
        self._publish = publish
        self._mode: Mode | None = None
        self._keeps_own = False
        self._present: dict[Role, tuple[int, ...]] = {}
        self._has_changed = asyncio.Event()

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.WorkerJoined():
                self._present[event.info.role] = event.info.cores  # a handshake gives it its own
            case events.ModeChanged():
                self._mode, self._keeps_own = event.mode, event.keep_cores
            case _:
                return
        self._has_changed.set()

    async def run(self) -> None:
        """Send a command for each change, until cancelled."""
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            await asyncio.gather(*map(self._apply, self._workers()))

    async def _apply(self, worker: Worker) -> None:
        if self._mode is None:
            return
        info, role = worker.info, worker.info.role
        wanted = info.cores if self._keeps_own else worker_cores(self._mode, info)
        if wanted == self._present.get(role):
            return
        try:
            timing = await worker.configure(wanted)
        except MineDraftError as error:
            logger.warning("the %s keeps its cores: %s", role.value, error)
            return
        if worker in self._workers():
            self._present[role] = wanted
            self._publish(events.CoresChanged(role, wanted, timing))
