"""Engines take turns; one that fails is left out of the rest; figures are medians over repeats."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from minedraft.errors import StartFailed
from scripts.lib.peers import plot, report
from scripts.lib.peers.arrivals import Stream
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.peers.clock import Clock
from scripts.lib.peers.driving import Outcome, Plan, measure_all
from scripts.lib.peers.engines.base import Engine, Setup
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.prompts import PromptSet
from scripts.lib.peers.summary import to_rows

CELLS = [Cell(CellKind.FIXED, 2, None, 4), Cell(CellKind.CONTEXT, 2, 6, 4, repeats=1)]
PROMPTS = PromptSet("a test", tuple((i, i + 1, i + 2) for i in range(64)))
NO_PROCESS = 1 << 22  # above the highest process id


class Told:
    """An engine that answers at once, with tokens at a told rate."""

    pid = NO_PROCESS

    def __init__(self, next_rate: Callable[[], float]) -> None:
        self._next_rate = next_rate

    async def answer(self, prompts: Sequence[Sequence[int]], cell: Cell) -> list[Stream]:
        step_s = 1 / self._next_rate()
        times = tuple(1.0 + i * step_s for i in range(cell.max_new_tokens))
        return [Stream(len(each), 0.0, times, (1,) * len(times), tuple(each)) for each in prompts]


class ToldPeer:
    start_s = 1.0
    pace = 1.0

    def __init__(self, name: str, log: list[str], *rates: float) -> None:
        self.name = name
        self._log = log
        self._rates = rates
        self._starts = 0

    def missing(self) -> str | None:
        return None

    def facts(self, setup: Setup) -> dict[str, Any]:
        return {"version": "1"}

    @asynccontextmanager
    async def serve(self, setup: Setup) -> AsyncIterator[Engine]:
        if not self._rates:
            raise StartFailed("no such model")
        rate = self._rates[self._starts % len(self._rates)]
        self._starts += 1
        self._log.append(f"{self.name} {setup.cores}")
        yield Told(lambda: rate)


def make_plan(*peers: ToldPeer, repeats: int = 3, core_sets: Sequence[tuple[int, ...]] | None = None) -> Plan:
    core_sets = core_sets or [tuple(sorted(os.sched_getaffinity(0)))[:1]]
    return Plan(Path("models/some"), "bfloat16", peers, core_sets, CELLS, repeats, 269e6)


async def run(plan: Plan) -> Outcome:
    outcome = Outcome()
    await measure_all(plan, PROMPTS, outcome, lambda label, left_s: None)
    return outcome


def test_engines_take_turns_and_begin_with_another_one_in_each_repeat():
    log: list[str] = []
    plan = make_plan(ToldPeer("a", log, 1.0), ToldPeer("b", log, 1.0), repeats=2, core_sets=[(0,), (0, 1)])
    shown = [f"{visit.peer.name}{len(visit.cores)}" for visit in plan.visits()]
    assert shown == ["a1", "b1", "a2", "b2", "b1", "a1", "b2", "a2"]
    assert [len(visit.cells) for visit in plan.visits()] == [2] * 4 + [1] * 4


async def test_figures_are_medians_over_the_repeats_with_their_extremes():
    before = os.sched_getaffinity(0)
    outcome = await run(make_plan(ToldPeer("a", [], 10.0, 30.0, 20.0)))
    rows = {row.cell.kind: row for row in to_rows(outcome.measurements)}
    decode = rows[CellKind.FIXED].figures["decode_tokens_per_s"]
    assert (decode.median, decode.low, decode.high) == pytest.approx((40.0, 20.0, 60.0))
    assert decode.share == pytest.approx(1.0)
    assert (rows[CellKind.FIXED].num_repeats, rows[CellKind.CONTEXT].num_repeats) == (3, 1)
    assert rows[CellKind.FIXED].same == 1.0
    assert os.sched_getaffinity(0) == before


async def test_an_engine_that_does_not_start_is_named_and_the_others_go_on():
    log: list[str] = []
    outcome = await run(make_plan(ToldPeer("broken", log), ToldPeer("a", log, 10.0)))
    assert outcome.failures.keys() == {"broken"}
    assert "no such model" in outcome.failures["broken"]
    assert len([line for line in log if line.startswith("a ")]) == 3


async def test_an_engine_that_does_not_answer_in_time_is_left_out(monkeypatch: pytest.MonkeyPatch):
    peer = ToldPeer("slow", [], 10.0)

    async def refuse(self: Told, prompts: object, cell: Cell) -> list[Stream]:
        raise PeerFailed("slow: HTTP 500")

    monkeypatch.setattr(Told, "answer", refuse)
    outcome = await run(make_plan(peer))
    assert not outcome.measurements
    assert "HTTP 500" in outcome.failures["slow"]


def test_the_time_left_follows_how_long_steps_took():
    steps, clock = [("a", 10.0), ("b", 30.0)], Clock()
    assert clock.left_s(steps) == pytest.approx(40.0)
    clock.record(steps[0], 20.0)
    assert clock.left_s(steps) == pytest.approx(80.0), "what has not run yet is as slow as what has"
    clock.record(steps[1], 30.0)
    assert clock.left_s(steps) == pytest.approx(50.0)


@pytest.mark.slow
async def test_the_report_fits_the_terminal_and_has_every_figure(tmp_path: Path):
    plan = make_plan(ToldPeer("minedraft ar", [], 10.0, 12.0), ToldPeer("broken", []), ToldPeer("llama.cpp", [], 5.0))
    outcome = await run(plan)
    console = Console(width=80, record=True, file=io.StringIO())
    report.show(console, plan, outcome)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "20.0" in text
    assert "no such model" in text
    content = report.to_content(plan, outcome, "a source", {"llama.cpp": {"version": "1"}}, {"vllm": "not installed"})
    report.write(tmp_path / "peers.json", content)
    assert {row["engine"] for row in content["rows"]} == {"minedraft ar", "llama.cpp"}
    assert {len(row["decode_tokens_per_s"]["values"]) for row in content["rows"]} == {3, 1}
    plot.draw(to_rows(outcome.measurements), "some", tmp_path / "peers.svg")
    assert "llama.cpp" in (tmp_path / "peers.svg").read_text()
