"""Whether the other doors of the service are open: what the launcher says of them, in the state and in health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from minedraft.process.run_folder.absent_doors import read_absent
from minedraft.server.service import InferenceService

logger = logging.getLogger("minedraft.scheduler")

_PERIOD_S = 0.5


async def watch_doors(service: InferenceService, set_health: Callable[[bool], Awaitable[None]], folder: Path) -> None:
    """Show which doors are closed, until cancelled.

    Args:
        set_health: takes whether the HTTP door is open.
        folder: the run folder, in which the launcher says it.
    """
    await set_health(True)
    while True:
        absent = read_absent(folder)
        if absent != service.absent:
            service.absent = absent
            await set_health(not absent)
            if absent:
                logger.warning("degraded: no %s; requests over gRPC are answered", absent)
            else:
                logger.warning("no longer degraded: all doors are open")
        await asyncio.sleep(_PERIOD_S)
