"""The output of a benchmark: a progress line, a table, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from minedraft.bench.machine import find_gpus, find_versions
from minedraft.bench.prompts import BenchPrompt
from minedraft.bench.runner import BenchConfig, BenchRow, bound_of, run_benchmark
from minedraft.client import AsyncClient
from minedraft.loan import AsyncLoan
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode

BenchTable = tuple[Sequence[BenchPrompt], SamplingParams, Sequence[BenchRow]]
_WORKER_FACTS = ("role", "model", "device", "dtype", "kernels", "draft_method", "num_blocks", "block_size")


async def run_with_progress(
    console: Console,
    client: AsyncClient,
    loan: AsyncLoan,
    configs: Sequence[BenchConfig],
    prompts: Sequence[BenchPrompt],
    params: SamplingParams,
    repeats: int,
) -> list[BenchRow]:
    """Call `run_benchmark` and show which run is in progress."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def on_run(config: BenchConfig, repeat: int) -> None:
            progress.update(task, description=f"{config.label}: run {repeat + 1} of {repeats}")

        return await run_benchmark(client, loan, configs, prompts, params, num_repeats=repeats, on_run=on_run)


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
        f"The number after the mode is requests in flight. k = {draft_len}; median times in ms.\n"
        "VSR: share of drafts accepted; accept: mean accepted length.\n"
        "overlap: max(draft, verify) / step; busy: share of time verifying."
    )
    overlapped = next((row for row in rows if row.config.mode is Mode.MINEDRAFT and not row.config.is_auto), None)
    if overlapped is not None:
        # From the times of one run: between runs the machine's speed changes by more than this.
        turns_ms = overlapped.median("draft_ms") + overlapped.median("verify_ms")
        table.caption += (
            f"\n{overlapped.config.label}: step {overlapped.median('step_ms'):.0f} ms, taking turns {turns_ms:.0f} ms:"
            f" {turns_ms / max(overlapped.median('step_ms'), 1e-9):.2f}x (bound {bound_of(overlapped):.2f}x)."
        )
    return table


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def write_report(path: Path, tables: Sequence[BenchTable], status: ServiceStatus, repeats: int) -> None:
    """Write all measurements as JSON, with the facts that a comparison needs."""
    content = {
        "machine": machine_facts(),
        "workers": [{name: getattr(worker, name) for name in _WORKER_FACTS} for worker in status.workers],
        "repeats": repeats,
        "tables": [
            {
                "num_prompts": len(prompts),
                "sampling": asdict(params),
                "bound": bound_of(base) if (base := _first_sd(rows)) is not None else None,
                "rows": [row.to_json() for row in rows],
            }
            for prompts, params, rows in tables
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _first_sd(rows: Sequence[BenchRow]) -> BenchRow | None:
    return next((row for row in rows if row.config.mode is Mode.SD and not row.config.is_auto), None)


def machine_facts() -> dict[str, Any]:
    """Return the facts about this machine that a comparison of numbers needs."""
    model, flags = "", set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            model = value.strip() if key.strip() == "model name" else model
            flags |= set(value.split()) if key.strip() == "flags" else set()
    except OSError:
        model = platform.processor()
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    cpu = {"cpu": model, "cores": os.cpu_count(), "instructions": [name for name in known if name in flags]}
    return {**cpu, "gpus": find_gpus(), "versions": find_versions()}
