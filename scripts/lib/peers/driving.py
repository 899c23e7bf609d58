"""Runs the engines one after the other, each started anew for each repeat, and keeps what was measured.

The order is repeat, cores, engine: what slows the machine for a while slows all engines, and the median over
repeats leaves it out. Only one engine runs at a time.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minedraft.device import format_cores, usable_cores
from minedraft.errors import MineDraftError
from scripts.lib.peers.arrivals import Rates, to_rates
from scripts.lib.peers.cells import Cell, CellKind, expected_s, warm_up
from scripts.lib.peers.clock import Clock, Expected, OnStep
from scripts.lib.peers.engines.affinity import family, keep_on, run_on
from scripts.lib.peers.engines.base import Engine, Peer, Setup
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.instructions import Instructions, Watch
from scripts.lib.peers.prompts import PromptSet

SAME_TOKENS = 8  # of an answer, compared between engines: later ones differ by rounding
_LEAST_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        core_sets: each engine runs on each of these sets of cores.
        weight_bytes: size of the model's weights, for the estimate of time.
        instructions: the widest that the engines may use.
    """

    model: Path
    dtype: str
    peers: Sequence[Peer]
    core_sets: Sequence[tuple[int, ...]]
    cells: Sequence[Cell]
    repeats: int
    weight_bytes: float
    instructions: Instructions = Instructions.NATIVE

    def visits(self) -> list[Visit]:
        """Return all visits in the order in which they run; the first engine is another one in each repeat."""
        count = len(self.peers)
        return [
            Visit(self.peers[(place + repeat) % count], cores, repeat, self.cells_of(repeat))
            for repeat in range(self.repeats)
            for cores in self.core_sets
            for place in range(count)
        ]

    def cells_of(self, repeat: int) -> list[Cell]:
        return [cell for cell in self.cells if cell.repeats is None or repeat < cell.repeats]

    def setup(self, cores: tuple[int, ...], folder: Path) -> Setup:
        longest = max((cell.prompt_len or 0) + cell.max_new_tokens for cell in self.cells)
        most = max(cell.num_in_flight for cell in self.cells)
        max_len = -(-max(longest, 512) // 256) * 256
        return Setup(self.model, self.dtype, cores, most, max_len, folder, self.instructions)


@dataclass(frozen=True, slots=True)
class Visit:
    """One start of one engine, and the cells that it answers before it stops."""

    peer: Peer
    cores: tuple[int, ...]
    repeat: int
    cells: Sequence[Cell]

    @property
    def label(self) -> str:
        word = "core" if len(self.cores) == 1 else "cores"
        return f"{self.peer.name} on {word} {format_cores(self.cores)}, repeat {self.repeat + 1}"

    def expected(self, weight_bytes: float) -> Expected:
        answers_s = sum(expected_s(cell, len(self.cores), weight_bytes) for cell in [warm_up(self.cells), *self.cells])
        return self.peer.name, self.peer.start_s * max(1.0, weight_bytes / 1e9) + self.peer.pace * answers_s


@dataclass(frozen=True, slots=True)
class Measurement:
    """One cell of one visit.

    Attributes:
        same: share of the answers whose first SAME_TOKENS tokens are those of the first engine measured; None
            where it is not compared.
    """

    peer: str
    cores: str
    cell: Cell
    repeat: int
    rates: Rates
    same: float | None


@dataclass(slots=True)
class Outcome:
    """What a run has found so far.

    Attributes:
        failures: peer name -> why it has no figures, or not all.
        elapsed_s: seconds of the visits that have ended.
    """

    measurements: list[Measurement] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    elapsed_s: float = 0.0


async def measure_all(plan: Plan, prompts: PromptSet, outcome: Outcome, on_step: OnStep) -> None:
    """Run all visits. A peer that fails is named in the outcome and not visited again.

    Args:
        outcome: filled as the run goes on, so that an interrupted run has its figures too.
        on_step: called with what runs now and about how many seconds are left.
    """
    visits, clock = plan.visits(), Clock()
    references: dict[Cell, list[tuple[int, ...]]] = {}
    everywhere = usable_cores()
    try:
        for place, visit in enumerate(visits):
            left = [later for later in visits[place:] if later.peer.name not in outcome.failures]
            if visit.peer.name in outcome.failures:
                continue
            on_step(visit.label, clock.left_s([later.expected(plan.weight_bytes) for later in left]))
            began_s = time.monotonic()
            try:
                async with _running(plan, visit, everywhere) as engine:
                    await _measure(visit, engine, plan, prompts, outcome, references)
            except (MineDraftError, OSError) as error:
                outcome.failures[visit.peer.name] = f"{visit.label}: {error}"
            clock.record(visit.expected(plan.weight_bytes), time.monotonic() - began_s)
            outcome.elapsed_s += time.monotonic() - began_s
    finally:
        run_on(everywhere)


@asynccontextmanager
async def _running(plan: Plan, visit: Visit, everywhere: Sequence[int]) -> AsyncIterator[Engine]:
    """Run a visit's engine on its cores, and this process on the others if there are any.

    It starts on all cores, which is faster, and is bound to its own when it is ready.
    """
    run_on(everywhere)
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        async with visit.peer.serve(plan.setup(visit.cores, Path(folder))) as engine:
            keep_on(family(engine.pid), visit.cores)
            run_on(set(everywhere).difference(visit.cores) or everywhere)
            yield engine


async def _measure(
    visit: Visit,
    engine: Engine,
    plan: Plan,
    prompts: PromptSet,
    outcome: Outcome,
    references: dict[Cell, list[tuple[int, ...]]],
) -> None:
    first = warm_up(plan.cells)
    for cell in [first, *visit.cells]:
        watch = Watch()
        patience_s = max(_LEAST_PATIENCE_S, 10 * expected_s(cell, len(visit.cores), plan.weight_bytes))
        gc.collect()
        gc.disable()  # a collection in the client would delay arrivals
        try:
            async with asyncio.timeout(patience_s):
                streams = await engine.answer(prompts.of(cell), cell)
        except TimeoutError:
            raise PeerFailed(f"{cell.label}: no answer after {patience_s:.0f} s") from None
        finally:
            gc.enable()
        if plan.instructions is Instructions.AVX2:
            _refuse_wider(watch.users_of_avx512(family(engine.pid)), cell)
        if cell is first:
            continue
        starts = [stream.token_ids[:SAME_TOKENS] for stream in streams]
        reference = references.setdefault(cell, starts)
        is_compared = cell.kind is CellKind.FIXED
        same = sum(a == b for a, b in zip(starts, reference, strict=True)) / len(starts) if is_compared else None
        cores = format_cores(visit.cores)
        outcome.measurements.append(Measurement(visit.peer.name, cores, cell, visit.repeat, to_rates(streams), same))


def _refuse_wider(threads: Sequence[str], cell: Cell) -> None:
    if threads:
        shown = ", ".join(sorted(set(threads)))
        raise PeerFailed(f"{cell.label}: {len(threads)} threads used AVX-512 though AVX2 was asked for ({shown})")
