"""Gives the verifier the cores of the mode that is in force."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from minedraft.core import events
from minedraft.core.policy.cores import verifier_cores
from minedraft.engine.workers import Verifier
from minedraft.errors import MineDraftError
from minedraft.types import Mode, Role

logger = logging.getLogger("minedraft.pipeline")


class CoreSharing:
    """Follows the mode. A change that fails costs speed and nothing else; the next change of mode tries again.

    Args:
        verifier: returns the present verifier.
        publish: passes an event to the observers.
    """

    def __init__(self, verifier: Callable[[], Verifier], publish: Callable[[events.Event], None]) -> None:
        self._verifier = verifier
        self._publish = publish
        self._mode: Mode | None = None
        self._keeps_own = False
        self._present: tuple[int, ...] = ()
        self._has_changed = asyncio.Event()

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.WorkerJoined() if event.info.role is Role.VERIFIER:
                self._present = event.info.cores  # a handshake gives it its own
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
            await self._apply()

    async def _apply(self) -> None:
        verifier = self._verifier()
        if self._mode is None:
            return
        wanted = verifier.info.cores if self._keeps_own else verifier_cores(self._mode, verifier.info)
        if wanted == self._present:
            return
        try:
            timing = await verifier.configure(wanted)
        except MineDraftError as error:
            logger.warning("the verifier keeps its cores: %s", error)
            return
        if verifier is self._verifier():
            self._present = wanted
            self._publish(events.CoresChanged(Role.VERIFIER, wanted, timing))
