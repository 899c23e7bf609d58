"""The product's pipeline on two worker processes, with no scheduler process and no client: to measure the rounds.

All that the scripts know of the pipeline's inside is here.
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
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.core.round_stats import RoundStats
from minedraft.engine.pipeline import Pipeline
from minedraft.engine.workers import Drafter, Verifier
from minedraft.observe.timeline import Timeline
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from scripts.lib.sink import Collector


@dataclass(slots=True)
class Driven:
    """A pipeline that runs, and what its observers have seen."""

    pipeline: Pipeline
    verifier: Verifier
    drafter: Drafter
    counters: Counters = field(default_factory=Counters)
    rounds: RoundStats = field(default_factory=RoundStats)
    timeline: Timeline = field(default_factory=Timeline)

    def configure(self, mode: Mode, max_batch_size: int, draft_len: int, **limits: int) -> None:
        """Go over to other limits; what the timeline has seen before is dropped."""
        self.timeline.bars.clear()
        self.pipeline.reconfigure(SchedulerLimits(mode, max_batch_size, draft_len, **limits))

    async def answer(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> float:
        """Answer all prompts at once; returns the seconds it took.

        Raises:
            MineDraftError: one of them failed.
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
        """Rounds of either batch."""
        return sum(self.counters.rounds.values())

    @property
    def wire_bytes(self) -> int:
        """Over both links, both ways."""
        return self.verifier.stats.wire_bytes + self.drafter.stats.wire_bytes

    def summary(self) -> dict[str, Any]:
        """Medians of the recent rounds."""
        return asdict(self.rounds.summary())


@asynccontextmanager
async def driven(verifier_at: Address, drafter_at: Address) -> AsyncIterator[Driven]:
    """Drive the workers at these addresses; `Driven.configure` says how."""
    async with AsyncExitStack() as stack:
        verifier = await stack.enter_async_context(await GrpcVerifier.connect(verifier_at))
        vocab_size = verifier.info.vocab_size
        drafter = await stack.enter_async_context(await GrpcDrafter.connect(drafter_at, target_vocab_size=vocab_size))
        counters, rounds, timeline = Counters(), RoundStats(), Timeline()
        observers = [counters.observe, rounds.observe, timeline.observe]
        pipeline = await stack.enter_async_context(Pipeline(SchedulerLimits(), verifier, drafter, observers=observers))
        yield Driven(pipeline, verifier, drafter, counters, rounds, timeline)
