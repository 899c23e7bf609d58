"""A comparison from its start to its samples: processes, one answer, a warm-up, and the interleaved repeats."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minedraft.device import usable_cores
from minedraft.models.catalogue import Pair
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.peers.engines.affinity import run_on
from scripts.lib.peers.engines.http_engine import HttpEngine
from scripts.lib.peers.prompts import PromptSet
from scripts.lib.vllm.environment import PluginEnvironment
from scripts.lib.vllm.findings import round_times, verify_times
from scripts.lib.vllm.servers import Sample, ask_once, drafter_for, measure, servers_for
from scripts.lib.vllm.ways import Places, ServerPlan, Way

PROMPT = "What is the difference between weather and climate? Answer in a few sentences."
_WARM_UP_TOKENS = 8
_MAX_PROMPT = 448  # tokens; those of the benchmark's chat prompts are fewer

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared.

    Attributes:
        counts: requests in flight. max_new_tokens: of each answer, exactly.
        repeats: how often each cell is measured in each way.
        paced: how long the slow drafter takes, as a share of the verify; 0: it is left out.
    """

    pair: Pair
    ways: Sequence[Way]
    counts: Sequence[int]
    draft_len: int
    dtype: str
    max_new_tokens: int
    repeats: int
    paced: float

    @property
    def can_be_paced(self) -> bool:
        """Whether there is something to compare with a slow drafter."""
        return self.paced > 0 and {Way.SERIAL, Way.ALTERNATING} <= set(self.ways)

    def plan(self, folder: Path) -> ServerPlan:
        assert self.pair.draft is not None, "the pairs have draft models"
        max_len = _MAX_PROMPT + self.max_new_tokens
        most = max(self.counts)
        return ServerPlan(self.pair.target, self.pair.draft, self.dtype, self.draft_len, most, max_len, folder)

    def cells(self) -> list[Cell]:
        """Return a cell for each number in flight, and for the half of it, whose times the bound needs."""
        counts = sorted({*self.counts, *(count // 2 for count in self.counts)} - {0})
        return [Cell(CellKind.FIXED, count, None, self.max_new_tokens) for count in counts]

    def ways_of(self, cell: Cell) -> Sequence[Way]:
        """Return the ways that answer a cell: of a half that is not asked for, only what the bound needs."""
        return self.ways if cell.num_in_flight in self.counts else [way for way in self.ways if way is Way.SERIAL]


@dataclass(slots=True)
class Found:
    """What a comparison has measured.

    Attributes:
        failed: why a way's server did not start.
        samples: with the drafter at its own pace. paced: with the slow one.
        paced_ms: by requests, how long a draft of the slow one takes.
    """

    failed: dict[Way, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    paced: list[Sample] = field(default_factory=list)
    paced_ms: dict[int, float] = field(default_factory=dict)


def own_places() -> Places:
    """Return the cores: the second one is the verifier's, as in the service; both are the same if there is one."""
    cores = usable_cores()
    return Places(cores[min(1, len(cores) - 1)], cores[0])


async def compare(comparison: Comparison, environment: PluginEnvironment, say: Say) -> Found:
    """Start everything, show one answer, and measure all cells in all ways, then those with the slow drafter.

    Raises:
        StartFailed: the drafter, or no server at all, did start. PeerFailed: a server broke off.
    """
    found, prompts = Found(), PromptSet.load(comparison.pair.target)
    async with _running(comparison, environment, found, say) as (engines, plan):
        way = list(engines)[-1]
        say(f"{way.value}, through the OpenAI client: {PROMPT}")
        say(await ask_once(engines[way], plan.socket(way), environment, PROMPT))
        warm_up = Cell(CellKind.FIXED, max(comparison.counts), None, _WARM_UP_TOKENS)
        async for _ in measure(engines, prompts, warm_up, 0):
            pass
        for repeat in range(comparison.repeats):
            say(f"repeat {repeat + 1} of {comparison.repeats}")
            for cell in comparison.cells():
                asked = {way: engines[way] for way in comparison.ways_of(cell) if way in engines}
                found.samples += await _measure(asked, prompts, cell, repeat)
        if comparison.can_be_paced and {Way.SERIAL, Way.ALTERNATING} <= engines.keys():
            await _measure_paced(comparison, engines, prompts, plan.times, found)
    return found


async def _measure_paced(
    comparison: Comparison, engines: Mapping[Way, HttpEngine], prompts: PromptSet, path: Path, found: Found
) -> None:
    """Measure serial and alternating with a drafter as slow as a share of the verify, most requests in flight."""
    count = max(comparison.counts)
    verify_s = verify_times(round_times(found.samples), count)
    found.paced_ms = {n: 1e3 * comparison.paced * seconds for n, seconds in verify_s.items()}
    table = {n: {comparison.draft_len: ms} for n, ms in found.paced_ms.items()}
    path.with_suffix(".new").write_text(json.dumps(table), encoding="utf-8")
    path.with_suffix(".new").replace(path)
    both = {way: engines[way] for way in (Way.SERIAL, Way.ALTERNATING)}
    for repeat in range(comparison.repeats):
        cell = Cell(CellKind.FIXED, count, None, comparison.max_new_tokens)
        found.paced += await _measure(both, prompts, cell, repeat)


@asynccontextmanager
async def _running(
    comparison: Comparison, environment: PluginEnvironment, found: Found, say: Say
) -> AsyncIterator[tuple[dict[Way, HttpEngine], ServerPlan]]:
    """Run the drafter and the servers, this process on the drafter's core."""
    places, everywhere, ways = own_places(), usable_cores(), comparison.ways
    num_drafting = max(sum(way.groups > 0 for way in ways), 1)
    try:
        with tempfile.TemporaryDirectory(prefix="vllm-") as folder:
            plan = comparison.plan(Path(folder))
            say(f"starting a drafter and {len(ways)} vLLM servers")
            times = plan.times if comparison.can_be_paced else None
            async with (
                drafter_for(plan, places, num_drafting, times) as drafter,
                servers_for(ways, plan, places, environment, drafter) as (engines, failed),
            ):
                for way, error in failed.items():
                    found.failed[way] = str(error)
                    say(f"{way.value} is left out: {error}")
                if not engines:
                    raise next(iter(failed.values()))
                run_on((places.drafter,))
                yield engines, plan
    finally:
        run_on(everywhere)


async def _measure(engines: Mapping[Way, HttpEngine], prompts: PromptSet, cell: Cell, repeat: int) -> list[Sample]:
    gc.collect()
    gc.disable()  # a collection here would delay arrivals
    try:
        return [sample async for sample in measure(engines, prompts, cell, repeat)]
    finally:
        gc.enable()
