"""Drives two worker processes with the product's pipeline, without scheduler process or client, to measure rounds.

Only this module of the scripts knows the inside of the pipeline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from minedraft.address import Address
from minedraft.core.counters import Counters
from minedraft.core.events import Observer
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.core.round_stats import RoundStats
from minedraft.engine.pairing import PairingConnector
from minedraft.engine.pipeline import Pipeline
from minedraft.engine.workers import Drafter, Verifier
from minedraft.observe.timeline import Timeline
from minedraft.rpc.connector import GrpcConnector
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from scripts.lib.sink import Collector


@dataclass(slots=True)
class Driven:
    """A running pipeline and its observers."""

    pipeline: Pipeline
    verifier: Verifier
    drafter: Drafter
    counters: Counters = field(default_factory=Counters)
    rounds: RoundStats = field(default_factory=RoundStats)
    timeline: Timeline = field(default_factory=Timeline)

    def configure(self, mode: Mode, max_batch_size: int, draft_len: int, max_model_len: int = 8192) -> None:
        """Change to other limits and clear the timeline."""
        self.timeline.bars.clear()
        self.pipeline.reconfigure(SchedulerLimits(mode, max_batch_size, draft_len, max_model_len=max_model_len))

    async def answer(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> float:
        """Answer all prompts together. Return the seconds it took.

        Raises:
            MineDraftError: a prompt failed.
        """
        sinks = [Collector() for _ in prompts]
        started_s = time.monotonic()
        for prompt, sink in zip(prompts, sinks, strict=True):
            self.pipeline.submit(NewRequest(tuple(prompt), params), sink)
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        elapsed_s = time.monotonic() - started_s
        for sink in sinks:
            if sink.error is not None:
                raise sink.error
        return elapsed_s

    @property
    def num_steps(self) -> int:
        """Rounds of both batches."""
        return sum(self.counters.rounds.values())

    @property
    def wire_bytes(self) -> int:
        """Bytes over both links, both ways."""
        return self.verifier.stats.wire_bytes + self.drafter.stats.wire_bytes

    def summary(self) -> dict[str, Any]:
        """Return medians of the recent rounds."""
        return asdict(self.rounds.summary())


@asynccontextmanager
async def driven(
    verifier_at: Address, drafter_at: Address, channel: str = "inline", observer: Observer | None = None
) -> AsyncIterator[Driven]:
    """Drive the workers at these addresses, joined by `channel`, until the block ends; see `Driven.configure`.

    Args:
        observer: takes every event, too.
    """
    connector = PairingConnector(GrpcConnector(verifier_at, drafter_at), channel)
    async with AsyncExitStack() as stack:
        verifier = await connector.connect_verifier()
        stack.push_async_callback(verifier.close)
        drafter = await connector.connect_drafter(verifier.info)
        assert drafter is not None, "it has an address"
        stack.push_async_callback(drafter.close)
        counters, rounds, timeline = Counters(), RoundStats(), Timeline()
        observers = [counters.observe, rounds.observe, timeline.observe, *([observer] if observer else [])]
        pipeline = await stack.enter_async_context(Pipeline(SchedulerLimits(), verifier, drafter, observers=observers))
        yield Driven(pipeline, verifier, drafter, counters, rounds, timeline)
