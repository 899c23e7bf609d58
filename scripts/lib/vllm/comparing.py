"""A comparison from its start to its samples: processes, one answer, a warm-up, and the interleaved repeats."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from minedraft.device import usable_cores
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.peers.clock import OnStep
from scripts.lib.peers.engines.affinity import run_on
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.http_engine import HttpEngine
from scripts.lib.peers.prompts import PromptSet
from scripts.lib.vllm.comparison import PLUGIN_WAYS, SLOW, Comparison, Found
from scripts.lib.vllm.course import Course, Step, cell_step, start_step
from scripts.lib.vllm.environment import PluginEnvironment
from scripts.lib.vllm.findings import paced_times, round_times
from scripts.lib.vllm.memory import free_bytes, own_bytes, together, weight_bytes
from scripts.lib.vllm.servers import Sample, ask_once, drafter_for, measure, servers_for
from scripts.lib.vllm.ways import Places, ServerPlan, Way

PROMPT = "What is the difference between weather and climate? Answer in a few sentences."
_WARM_UP_TOKENS = 8

Say = Callable[[str], None]


def own_places() -> Places:
    """Return the cores: the second one is the verifier's, as in the service; both are the same if there is one."""
    cores = usable_cores()
    return Places(cores[min(1, len(cores) - 1)], cores[0])


async def compare(
    comparison: Comparison, environment: PluginEnvironment, found: Found, say: Say, on_step: OnStep
) -> None:
    """Start everything, show one answer, and measure all cells in all ways, then those with the slow drafter.

    Args:
        found: filled as the run goes on, so that an interrupted run has its figures too.

    Raises:
        StartFailed: the drafter did not start. PeerFailed: no server has figures.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-") as folder:
        plan = comparison.plan(Path(folder))
        sets = together(comparison.ways, own_bytes(plan, comparison.ways), free_bytes(plan))
        if len(sets) > 1:
            say(f"memory has no room for all servers together: {len(sets)} sets run one after the other")
        course = Course([step for ways in sets for step in comparison.steps(ways)], on_step)
        run = _Run(comparison, plan, environment, found, course, PromptSet.load(comparison.pair.target))
        for place, ways in enumerate(sets):
            async with run.serving(ways) as engines:
                for way in set(found.failed) & set(ways):
                    say(f"{way.value} is left out: {found.failed[way]}")
                if place == 0 and engines:
                    say(await run.answer(engines))
                await run.measure_all(engines)
    if not found.samples:
        raise PeerFailed("nothing could be measured")


@dataclass(frozen=True, slots=True)
class _Run:
    """A comparison that runs."""

    comparison: Comparison
    plan: ServerPlan
    environment: PluginEnvironment
    found: Found
    course: Course
    prompts: PromptSet

    @asynccontextmanager
    async def serving(self, ways: Sequence[Way]) -> AsyncIterator[dict[Way, HttpEngine]]:
        """Run the servers of these ways and, if one of them has the plugin, the drafter; this process on the drafter's
        core."""
        places, everywhere = own_places(), usable_cores()
        num_drafting = sum([way.groups > 0 for way in ways])
        times = self.plan.times if self.comparison.can_be_paced else None
        try:
            async with AsyncExitStack() as stack:
                with self.course.step(start_step(ways)):
                    drafter = None
                    if num_drafting:
                        drafter = await stack.enter_async_context(drafter_for(self.plan, places, num_drafting, times))
                    servers = servers_for(ways, self.plan, places, self.environment, drafter)
                    engines, failed = await stack.enter_async_context(servers)
                for way, error in failed.items():
                    self.fail(way, error)
                run_on((places.drafter,))
                yield engines
        finally:
            run_on(everywhere)

    def fail(self, way: Way, error: Exception) -> None:
        """Leave a way out from now on."""
        self.found.failed[way] = str(error)
        self.course.drop(way)

    async def answer(self, engines: Mapping[Way, HttpEngine]) -> str:
        """Return what the last way answers through the OpenAI client."""
        way = list(engines)[-1]
        said = await ask_once(engines[way], self.plan.socket(way), self.environment, PROMPT)
        return f"{way.value}, through the OpenAI client: {PROMPT}\n{said}"

    async def measure_all(self, engines: Mapping[Way, HttpEngine]) -> None:
        """Measure all cells in these ways, one after the other."""
        comparison, weights = self.comparison, weight_bytes(self.plan.target, self.plan.dtype)
        warm_up = Cell(CellKind.FIXED, max(comparison.counts), None, _WARM_UP_TOKENS)
        for way, engine in engines.items():
            await self._try(way, engine, warm_up, 0)
        for repeat in range(comparison.repeats):
            for cell in comparison.cells():
                ways = [way for way in comparison.ways_of(cell) if way in engines]
                for way in _turned(ways, repeat):
                    sample = await self._try(way, engines[way], cell, repeat, cell_step(way, cell, repeat, weights))
                    self.found.samples += sample
        if comparison.can_be_paced and set(PLUGIN_WAYS) <= engines.keys() - self.found.failed.keys():
            await self._measure_paced(engines, weights)

    async def _measure_paced(self, engines: Mapping[Way, HttpEngine], weights: float) -> None:
        """Measure serial and alternating with a drafter as slow as a share of the verify, most requests in flight."""
        comparison, cell = self.comparison, self.comparison.fullest
        times = paced_times(round_times(self.found.samples), cell.num_in_flight, comparison.paced)
        self.found.paced_times = times
        table = {count: {comparison.draft_len: 1e3 * each.draft_s} for count, each in times.items()}
        new = self.plan.times.with_suffix(".new")
        new.write_text(json.dumps(table), encoding="utf-8")
        new.replace(self.plan.times)
        for repeat in range(comparison.repeats):
            for way in _turned(PLUGIN_WAYS, repeat):
                step = cell_step(way, cell, repeat, weights, SLOW)
                self.found.paced += await self._try(way, engines[way], cell, repeat, step)

    async def _try(
        self, way: Way, engine: HttpEngine, cell: Cell, repeat: int, step: Step | None = None
    ) -> list[Sample]:
        """Return the sample; none, now and later, of a way that fails."""
        if way in self.found.failed:
            return []
        gc.collect()
        gc.disable()  # a collection here would delay arrivals
        try:
            with nullcontext() if step is None else self.course.step(step):
                return [await measure(way, engine, self.prompts, cell, repeat)]
        except PeerFailed as error:
            self.fail(way, error)
            return []
        finally:
            gc.enable()


def _turned(ways: Sequence[Way], repeat: int) -> Sequence[Way]:
    """Return the ways in an order in which another one is first in each repeat."""
    start = repeat % max(len(ways), 1)
    return [*ways[start:], *ways[:start]]
