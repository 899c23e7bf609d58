"""A simulated device: a command at a time, slower while the other device reads from the same memory."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from minedraft.messages import Timing
from minedraft.sim.forwards import Effort

_SHORTEST = 0.3
"""The least part of its time that noise leaves a command."""
_HICCUP = 5.0


@dataclass
class SimulatedDevice:
    """One device.

    Attributes:
        link_s: the time that a message takes to it, and one from it.
        gap_s: the time from the end of a command to the begin of the next, if that one waits already.
        collision: see `theory.costs.Costs`; it counts while `other` computes, too.
        noise: standard deviation of a command's time, as a part of it.
        hiccups: probability that a command takes `_HICCUP` times its time: another process had the device.
    """

    rng: random.Random
    link_s: float = 0.0
    gap_s: float = 0.0
    collision: float = 0.0
    noise: float = 0.0
    hiccups: float = 0.0
    other: SimulatedDevice | None = None
    _reading: float | None = None  # of the command that it executes
    _free_s: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)  # replaced at each change of `_reading`
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, work: Effort) -> Timing:
        """Take the time of a command, its messages included."""
        loop = asyncio.get_running_loop()
        if self.link_s:
            await asyncio.sleep(self.link_s)
        received_s = loop.time()
        async with self._lock:
            if self._free_s > loop.time():
                await asyncio.sleep(self._free_s - loop.time())
            start_s = loop.time()
            self._set_reading(work.reading)
            scale = max(self.rng.gauss(1.0, self.noise), _SHORTEST) if self.noise else 1.0
            if self.hiccups and self.rng.random() < self.hiccups:
                scale *= _HICCUP
            await self._compute(scale * work.seconds, work.reading)
            self._set_reading(None)
            end_s = loop.time()
            self._free_s = end_s + self.gap_s
        if self.link_s:
            await asyncio.sleep(self.link_s)
        queue_ns, busy_ns, start_ns = (round(1e9 * value) for value in (start_s - received_s, end_s - start_s, start_s))
        return Timing(queue_ns=queue_ns, forward_ns=busy_ns, busy_ns=busy_ns, start_ns=start_ns)

    async def _compute(self, alone_s: float, reading: float) -> None:
        other, loop = self.other, asyncio.get_running_loop()
        if other is None or not self.collision * reading:
            await asyncio.sleep(alone_s)
            return
        left_s = alone_s
        while left_s > 0:
            slowdown, start_s = 1 + self.collision * reading * (other._reading or 0.0), loop.time()
            try:
                async with asyncio.timeout(left_s * slowdown):
                    await other._changed.wait()
            except TimeoutError:
                return
            left_s -= (loop.time() - start_s) / slowdown

    def _set_reading(self, reading: float | None) -> None:
        self._reading = reading
        self._changed.set()
        self._changed = asyncio.Event()
