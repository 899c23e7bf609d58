"""A server's counters read again and again while it answers, so that a part of the answer can be looked at alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from scripts.lib.peers.engines.http_engine import HttpEngine
from scripts.lib.vllm.counters import Counters

_LATE_STEPS = 2
_EVERY_S = 0.2  # a reading costs the server some milliseconds of the drafter's core


@dataclass(frozen=True, slots=True)
class Reading:
    """What a server has counted at a moment between two, in seconds of the monotonic clock."""

    asked_s: float
    told_s: float
    counters: Counters


async def read_counters(engine: HttpEngine) -> Reading:
    asked_s = time.monotonic()
    text = (await engine.client.get("/metrics")).text
    return Reading(asked_s, time.monotonic(), Counters.parse(text))


@asynccontextmanager
async def watched(engine: HttpEngine) -> AsyncIterator[list[Reading]]:
    """Read the counters while the block runs, at its beginning and at its end too. The list grows meanwhile."""
    readings = [await read_counters(engine)]

    async def go_on() -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            readings.append(await read_counters(engine))

    task = asyncio.create_task(go_on())
    try:
        yield readings
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    readings.append(await read_counters(engine))


def counted_between(readings: Sequence[Reading], from_s: float, to_s: float) -> Counters | None:
    """Return what was counted in that time; None if no step was told of in it.

    A server tells of its steps late, some at a time, so that the first reading may still lack the last prompt's step, a
    long one: what is counted begins with the reading that has `_LATE_STEPS` more.
    """
    inside = [reading for reading in readings if from_s <= reading.asked_s and reading.told_s <= to_s]
    later = [reading for reading in inside if _num_steps(reading) >= _num_steps(inside[0]) + _LATE_STEPS]
    if not later or _num_steps(later[-1]) == _num_steps(later[0]):
        return None
    return later[-1].counters.since(later[0].counters)


def _num_steps(reading: Reading) -> float:
    steps = reading.counters.steps
    return 0.0 if steps is None else steps.num_steps
