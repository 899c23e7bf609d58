"""Whether the service is ready for new requests: from the first generation on, while there is a verifier."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from minedraft.core import events
from minedraft.types import Role


class Readiness:
    """An observer that takes readiness back while there is no verifier: live answers wait for it, and new requests are
    better sent elsewhere. A lost drafter changes nothing: the service answers without it.

    Args:
        tell: tells who asks whether the service is ready.
    """

    def __init__(self, tell: Callable[[bool], Awaitable[None]]) -> None:
        self._tell = tell
        self._is_open = False
        self._has_verifier = True
        self._telling: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """Say that the service is ready, unless the verifier was lost meanwhile."""
        self._is_open = True
        await self._tell(self._has_verifier)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.WorkerLeft(role=Role.VERIFIER):
                self._change(False)
            case events.WorkerJoined() if event.info.role is Role.VERIFIER:
                self._change(True)

    def _change(self, has_verifier: bool) -> None:
        self._has_verifier = has_verifier
        if self._is_open:
            telling = asyncio.ensure_future(self._tell(has_verifier))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
