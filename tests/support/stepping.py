"""Steps the event loop until a condition holds: no clock, no sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(predicate: Callable[[], bool], max_steps: int = 100_000) -> None:
    """Let other tasks run, one iteration of the loop at a time, until `predicate()` is true."""
    for _ in range(max_steps):
        if predicate():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"not reached in {max_steps} iterations of the event loop")
