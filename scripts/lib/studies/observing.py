"""scripts/bench/observing: what metrics and a trace cost the service that they are of."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from minedraft import SamplingParams
from minedraft.address import Address
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import progress_printer, run
from minedraft.core.events import (
    Drafted,
    Event,
    Observer,
    RequestQueued,
    RoundCommitted,
    RoundPlanned,
    Verified,
)
from minedraft.messages import Timing
from minedraft.models.catalogue import ensure_pair
from minedraft.observe.exposition import Page
from minedraft.observe.metrics import Meter
from minedraft.observe.metrics_server import serve_metrics
from minedraft.observe.status import StatusBoard
from minedraft.observe.trace import Tracer
from minedraft.observe.trace_events import TraceRecords
from minedraft.output import ServiceStatus
from minedraft.settings.loading import load_settings
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import Batch, DraftMethod, Mode
from scripts.lib.driving import Driven, driven
from scripts.lib.processes import workers

NULL_WORKER, WORKER = "scripts.lib.null_worker", "minedraft_workers.main"
WAYS = ("none", "metrics", "trace")
SIZES = ((Mode.MINEDRAFT, 8), (Mode.AR, 64))
DRAFT_LEN = 5
REAL_M, REAL_DRAFT_LEN, REAL_TOKENS = 4, 2, 64
SCRAPE_INTERVAL_S = 1.0  # a Prometheus server asks every 15 s


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", default=400, show_default=True, type=click.IntRange(50), help="Steps of a run without models.")
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(1), help="Runs of each way.")
@click.option("--control/--no-control", default=True, show_default=True, help="Runs without models.")
@click.option("--real/--no-real", default=True, show_default=True, help="Runs with the default pair of models.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures here.")
def main(steps: int, repeats: int, control: bool, real: bool, json_path: Path | None) -> None:
    """Compare runs without anything, with metrics that are asked for every second, and with a trace, interleaved.

    First, the observers are given the events of many steps, alone. Then the pipeline drives null workers, whose forward
    takes no time: a step is then control alone, and what an observer costs shows as much as it can. Then it drives the
    default pair of models.

    \b
    Examples:
      scripts/bench/observing --json observing.json
      scripts/bench/observing --no-real --repeats 3
    """
    console, rows = Console(), []
    costs = _observer_costs()
    console.print("microseconds of one thread for a step with 8 requests and 5 drafts each:", costs)
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        loads = [_null_load(mode, m, steps) for mode, m in SIZES] if control else []
        for load in [*loads, *([_real_load()] if real else [])]:
            rows.append(asyncio.run(_measure(Path(folder), load, repeats)))
            console.print(f"{rows[-1]['load']}, {rows[-1]['mode']}, {rows[-1]['num_in_flight']} in flight")
            for what in ("step_ms", "scheduler_cpu_us"):
                console.print(what, {key: value for key, value in rows[-1][what].items() if key != "all"})
    if json_path is not None:
        content = {"machine": machine_facts(), "observer_us": costs, "repeats": repeats, "loads": rows}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _observer_costs() -> dict[str, float]:
    """Return the least microseconds of a thread's time that each part takes for a step of eight requests."""
    steps, meter, records = [_step(n) for n in range(2000)], Meter(), TraceRecords()
    for request_id in range(8):
        meter.observe(RequestQueued(request_id, 20), 0.0)
    kept: deque[tuple[Event, float]] = deque(maxlen=8192)

    def write(event: Event, now_s: float) -> None:
        for record in records.of(event, now_s):
            record.encode()

    parts: dict[str, Observer] = {
        "metrics, in the event loop": meter.observe,
        "trace, in the event loop": lambda event, now_s: kept.append((event, now_s)),
        "trace, in its thread": write,
    }
    return {name: min(_thread_us(observe, steps) for _ in range(5)) for name, observe in parts.items()}


def _thread_us(observe: Observer, steps: Sequence[Sequence[Event]]) -> float:
    began_ns = time.thread_time_ns()
    for step in steps:
        for event in step:
            observe(event, 1.0)
    return (time.thread_time_ns() - began_ns) / 1e3 / len(steps)


def _step(number: int) -> Sequence[Event]:
    batch, start_ns = Batch(number % 2), number * 1_000_000
    timing = Timing(1000, 400_000, 500_000, 1000, start_ns)
    accepted, grown = tuple([(5, 2)] * 8), tuple([(request_id, 3) for request_id in range(8)])
    sources = (DraftMethod.MODEL,) * 8
    return (
        RoundPlanned(batch, number, 8, 0, 40, 5),
        Drafted(batch, number, timing, is_prefill=False),
        Verified(batch, number, timing),
        RoundCommitted(batch, number, 8, 24, accepted, False, 2, sources, (), grown),
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """What both workers are, and what they are asked."""

    name: str
    worker: str
    verifier: tuple[str, ...]
    drafter: tuple[str, ...]
    mode: Mode
    m: int
    draft_len: int
    prompts: Sequence[Sequence[int]]
    num_tokens: int


def _null_load(mode: Mode, m: int, steps: int) -> _Load:
    num_tokens = steps * (1 if mode is Mode.AR else 1 + (DRAFT_LEN + 1) // 2)
    return _Load(
        "null workers", NULL_WORKER, (), (), mode, m, DRAFT_LEN, [range(20)] * m * mode.num_batches, num_tokens
    )


def _real_load() -> _Load:
    pair = ensure_pair(on_progress=progress_printer())
    tokenizer, mode = Tokenizer.load(pair.target), Mode.MINEDRAFT
    chosen = load_prompts(None)[: REAL_M * mode.num_batches]
    prompts = [tokenizer.encode_chat([{"role": "user", "content": prompt.text}]) for prompt in chosen]
    verifier, drafter = (
        ("--model", str(pair.target), "--device", "cpu:1"),
        ("--model", str(pair.draft), "--device", "cpu:0"),
    )
    return _Load(pair.target.name, WORKER, verifier, drafter, mode, REAL_M, REAL_DRAFT_LEN, prompts, REAL_TOKENS)


class _Switch:
    """An observer that passes events to the board, and to another one or to none."""

    def __init__(self, board: StatusBoard) -> None:
        self.to: Observer | None = None
        self._board = board

    def observe(self, event: Event, now_s: float) -> None:
        self._board.observe(event, now_s)
        if self.to is not None:
            self.to(event, now_s)


async def _measure(folder: Path, load: _Load, repeats: int) -> dict[str, Any]:
    """Return median milliseconds of a step in each way, and the median of each way's ratio to the run before it that
    had nothing."""
    board = StatusBoard(load_settings())
    switch = _Switch(board)
    step_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu_us: dict[str, list[float]] = {way: [] for way in WAYS}  # of this process, the scheduler's part, for a step
    async with (
        workers(folder, load.worker, verifier=load.verifier, drafter=load.drafter) as addresses,
        driven(*addresses, observer=switch.observe) as rounds,
    ):
        rounds.configure(
            load.mode, load.m, load.draft_len, max_model_len=1 << 19 if load.worker == NULL_WORKER else 8192
        )
        for turn in range(repeats + 1):
            for way in WAYS:
                async with _observed(way, switch, board, rounds, folder):
                    before, cpu_s = rounds.num_steps, time.process_time()
                    params = SamplingParams(max_new_tokens=load.num_tokens, ignore_eos=True)
                    elapsed_s = await rounds.answer(load.prompts, params)
                    cpu_s, num_steps = time.process_time() - cpu_s, rounds.num_steps - before
                if turn:  # the first one warms up
                    step_ms[way].append(elapsed_s / num_steps * 1e3)
                    cpu_us[way].append(cpu_s / num_steps * 1e6)
    what = {"load": load.name, "mode": load.mode.value, "num_in_flight": len(load.prompts)}
    return {**what, "step_ms": _compare(step_ms), "scheduler_cpu_us": _compare(cpu_us)}


def _compare(values: dict[str, list[float]]) -> dict[str, Any]:
    """Return each way's median, and the median of its differences and ratios to the run in the same turn that had
    nothing; of the differences also what 95 of 100 resamplings of the turns lie within."""
    turns = {way: list(zip(values[way], values["none"], strict=True)) for way in WAYS[1:]}
    return {
        "medians": {way: median(values[way]) for way in WAYS},
        "more": {way: median(value - none for value, none in pairs) for way, pairs in turns.items()},
        "more_95": {way: _interval([value - none for value, none in pairs]) for way, pairs in turns.items()},
        "ratios": {way: median(value / none for value, none in pairs) for way, pairs in turns.items()},
        "all": values,
    }


def _interval(values: Sequence[float], num_resamplings: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the median of paired differences, by the percentile bootstrap."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(num_resamplings))
    return medians[num_resamplings // 40], medians[-1 - num_resamplings // 40]


@asynccontextmanager
async def _observed(way: str, switch: _Switch, board: StatusBoard, rounds: Driven, folder: Path) -> AsyncIterator[None]:
    if way == "metrics":
        meter, page, port = Meter(), Page("null"), _free_port()
        switch.to = meter.observe
        address = Address(host="127.0.0.1", port=port)

        def status() -> ServiceStatus:
            return board.status("serving", rounds.pipeline)

        async with serve_metrics(address, status, lambda now: page.metrics(now, meter)), _asked(port):
            yield
    elif way == "trace":
        tracer = Tracer(folder / "trace.json", "null")
        switch.to = tracer.observe
        yield
        await asyncio.to_thread(tracer.close)
    else:
        yield
    switch.to = None


@asynccontextmanager
async def _asked(port: int) -> AsyncIterator[None]:
    """Ask for the metrics page every second while the block runs, from a thread."""

    def fetch() -> None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            reply.read()

    async def ask() -> None:
        while True:
            await asyncio.to_thread(fetch)
            await asyncio.sleep(SCRAPE_INTERVAL_S)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    run(main, "scripts/bench/observing")
