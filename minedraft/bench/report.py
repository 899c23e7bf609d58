"""The output of a benchmark: progress, tables, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from minedraft.bench.machine import find_gpus, find_versions, name_cpu
from minedraft.bench.progress import RunProgress
from minedraft.bench.runner import BenchConfig, BenchRow, BenchTable, bound_of, planned_runs, run_tables
from minedraft.bench.traffic import Traffic
from minedraft.bench.vllm_result import vllm_setup
from minedraft.client import AsyncClient
from minedraft.loan import AsyncLoan
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode

_RATES = ("decode_only_tokens_per_s", "tokens_per_s_per_device")
_TIMES = (
    "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "median_itl_ms", "p99_itl_ms", "median_e2el_ms",
    "p99_e2el_ms", "makespan_per_request_ms",
)  # fmt: skip
_WORKER_FACTS = ("role", "model", "device", "dtype", "kernels", "draft_method", "num_blocks", "block_size")


async def run_with_progress(
    console: Console,
    client: AsyncClient,
    loan: AsyncLoan,
    tables: Sequence[BenchTable],
    repeats: int,
    traffic: Traffic | None = None,
    *,
    is_detailed: bool = False,
) -> None:
    """Call `run_tables` and show which run is in progress, and the time left."""
    rows = [id(row) for _, row in planned_runs(tables)]
    with RunProgress(console, rows * repeats) as progress:

        def on_run(table: BenchTable, row: BenchRow, repeat: int) -> None:
            progress.begin(id(row), row.config.label + describe_sampling(table.sampling))

        await run_tables(
            client, loan, tables, num_repeats=repeats, traffic=traffic, is_detailed=is_detailed, on_run=on_run
        )


def describe_sampling(sampling: SamplingParams) -> str:
    """Return the number of samples and the temperature, if they are not the usual ones: " n=2 T=0.8"."""
    num = f" n={sampling.n}" if sampling.n > 1 else ""
    return num + (f" T={sampling.temperature:g}" if sampling.temperature else "")


def render_rows(rows: Sequence[BenchRow]) -> Table:
    """Return the comparison as a table that fits 80 columns; times in milliseconds."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, caption_justify="left")
    base = _first_sd(rows)
    names = ["mode", "tok/s", "VSR", "accept", "draft", "verify", "step", "overlap", "busy"]
    for name in names[:2] + (["of sd"] if base is not None else []) + names[2:]:
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for row in rows:
        has_drafts = row.config.mode.has_drafts
        in_flight = "+".join([str(row.config.max_batch_size)] * row.config.mode.num_batches)
        mode = f"auto: {row.config.mode.value}" if row.config.is_auto else row.config.mode.value
        mode += _cores_of(row.config)
        cells = [f"{mode} {in_flight}", f"{row.median('tokens_per_s'):.1f}"]
        if base is not None:
            cells.append(f"{row.median('tokens_per_s') / base.median('tokens_per_s'):.2f}x")
        cells += [f"{row.median('vsr'):.0%}", f"{row.median('mean_accepted_len'):.2f}"] if has_drafts else ["-", "-"]
        cells.append(_ms(row.median("draft_ms")) if has_drafts else "-")
        cells += [_ms(row.median("verify_ms")), _ms(row.median("step_ms"))]
        cells += [f"{row.median('overlap_efficiency'):.2f}", f"{row.median('verifier_busy'):.0%}"]
        table.add_row(*cells)
    draft_len = max(row.config.draft_len for row in rows if not row.config.is_auto)
    table.caption = (
        f"The number after the mode is requests in flight; median times in ms.\n"
        f"k, the drafts of a request in a round, is {draft_len}. VSR: share of drafts accepted;\n"
        "accept: mean accepted length; overlap: max(draft, verify) / step;\n"
        "busy: share of time verifying."
    )
    overlapped = next((row for row in rows if row.config.mode is Mode.MINEDRAFT and not row.config.is_auto), None)
    if overlapped is not None:
        # From the times of one run: between runs the machine's speed changes by more than this.
        turns_ms = overlapped.median("draft_ms") + overlapped.median("verify_ms")
        table.caption += (
            f"\nminedraft: step {overlapped.median('step_ms'):.0f} ms, taking turns {turns_ms:.0f} ms:"
            f" {turns_ms / max(overlapped.median('step_ms'), 1e-9):.2f}x, at most {bound_of(overlapped):.2f}x."
        )
    return table


def render_latencies(rows: Sequence[BenchRow]) -> Table:
    """Return what requests see, as a table that fits 80 columns; times in milliseconds."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, caption_justify="left")
    names = ["mode", "decode", "/dev", "TTFT", "p99", "TPOT", "ITL", "p99", "E2E", "p99", "mksp"]
    for name in names:
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for row in rows:
        in_flight = "+".join([str(row.config.max_batch_size)] * row.config.mode.num_batches)
        rates = [f"{row.median(name):.1f}" for name in _RATES]
        times = [_ms_or_s(row.median(name)) for name in _TIMES]
        table.add_row(f"{row.config.mode.value}{_cores_of(row.config)} {in_flight}", *rates, *times)
    table.caption = (
        "decode: tokens/s of rounds without prompts; /dev: tokens/s per GPU or core.\n"
        "Medians and 99th percentiles of requests; mksp: makespan / requests. In ms, or s."
    )
    return table


def _ms_or_s(value_ms: float) -> str:
    return _ms(value_ms) if value_ms < 1000 else f"{value_ms / 1e3:.{int(value_ms < 1e4)}f}s"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def write_report(
    path: Path,
    tables: Sequence[BenchTable],
    status: ServiceStatus,
    repeats: int,
    traffic: Traffic | None = None,
) -> None:
    """Write all measurements as JSON, with the facts that a comparison needs. Rows without runs are left out; a
    benchmark of one run has vLLM's keys at the top, too."""
    content: dict[str, Any] = {
        "machine": machine_facts(),
        "workers": [{name: getattr(worker, name) for name in _WORKER_FACTS} for worker in status.workers],
        "repeats": repeats,
        "traffic": asdict(traffic or Traffic()),
        "tables": [_table_to_json(table) for table in with_runs(tables)],
    }
    runs = [run for table in with_runs(tables) for row in table.rows for run in row.runs]
    if len(runs) == 1:
        content = {**vllm_setup(status, traffic or Traffic()), **runs[0].to_json(), **content}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def with_runs(tables: Sequence[BenchTable]) -> list[BenchTable]:
    """Return the tables and rows that have runs: of an interrupted benchmark, those that it got to."""
    found = [replace(table, rows=[row for row in table.rows if row.runs]) for table in tables]
    return [table for table in found if table.rows]


def _table_to_json(table: BenchTable) -> dict[str, Any]:
    base = _first_sd(table.rows)
    return {
        "num_prompts": len(table.prompts),
        "kinds": dict(Counter(prompt.kind for prompt in table.prompts)),
        "sampling": asdict(table.sampling),
        "bound": bound_of(base) if base is not None else None,
        "rows": [row.to_json() for row in table.rows],
    }


def _cores_of(config: BenchConfig) -> str:
    return ", 1 device" if config.keeps_cores else ", all cores" if config.shares_cores else ""


def _first_sd(rows: Sequence[BenchRow]) -> BenchRow | None:
    """Return the first row of sd in which each worker has its own device."""
    found = (row for row in rows if row.config.mode is Mode.SD)
    return next((row for row in found if not row.config.is_auto and not row.config.shares_cores), None)


def machine_facts() -> dict[str, Any]:
    """Return the facts about this machine that a comparison of numbers needs."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        facts = {"model name": platform.processor()}
    flags = facts.get("flags", "").split()
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    instructions = [name for name in known if name in flags]
    cpu = {"cpu": name_cpu(facts, flags), "cores": os.cpu_count(), "instructions": instructions}
    return {**cpu, "gpus": find_gpus(), "versions": find_versions()}
