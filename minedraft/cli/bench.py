"""`minedraft bench`: the modes side by side on a running service, as a table and as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from minedraft.benchmark import (
    BenchConfig,
    BenchRow,
    default_configs,
    load_prompts,
    overlap_bound,
    run_benchmark,
)
from minedraft.client import AsyncClient
from minedraft.errors import ConfigError
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode


@click.command()
@click.option("--server", default=None, metavar="ADDR", help="Where the service listens.")
@click.option("-m", "--max-batch-size", "sizes", default="4", help="Requests a batch; a list is 2,4,8. Default 4.")
@click.option("-k", "--draft-len", "draft_lens", default="3", help="Drafts a round; a list is 2,3. Default 3.")
@click.option("--modes", default="ar,sd,minedraft", show_default=True, help="Which modes to compare.")
@click.option("--num-prompts", default=None, type=click.IntRange(1), help="Prompts a run; by default 2m, all at once.")
@click.option("--max-new-tokens", default=64, type=click.IntRange(1), help="Tokens a prompt, exactly. Default 64.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--repeats", default=3, type=click.IntRange(1), help="Runs of each row; medians are shown. Default 3.")
@click.option("--prompts", "prompts_path", default=None, type=click.Path(path_type=Path), help="JSON list of prompts.")
@click.option("--json", "json_path", default=None, type=click.Path(path_type=Path), help="Write everything here too.")
def bench(
    server: str | None,
    sizes: str,
    draft_lens: str,
    modes: str,
    num_prompts: int | None,
    max_new_tokens: int,
    temperature: float,
    repeats: int,
    prompts_path: Path | None,
    json_path: Path | None,
) -> None:
    """Compare ar, sd and minedraft on a running service.

    The service must have been started with --allow-configure, for its mode is switched between runs:

    \b
        minedraft-launch --allow-configure &
        minedraft bench -m 2,4,8 -k 3 --repeats 5 --json result.json
    """
    prompts = load_prompts(prompts_path)
    params = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens, ignore_eos=True)
    wanted = _parse_modes(modes)
    console = Console()
    report: list[dict[str, Any]] = []
    for size in _parse_ints("max-batch-size", sizes):
        for draft_len in _parse_ints("draft-len", draft_lens):
            configs = [c for c in default_configs(size, draft_len) if c.mode in wanted]
            count = num_prompts or 2 * size
            chosen = [prompts[i % len(prompts)] for i in range(count)]
            rows, status = asyncio.run(_measure(console, server, configs, chosen, params, repeats))
            console.print(render(rows, f"{count} prompts, {max_new_tokens} tokens each, m={size}, k={draft_len}"))
            report.append({"num_prompts": count, "sampling": asdict(params), "rows": [row.to_json() for row in rows]})
    if json_path is not None:
        workers = [{k: v for k, v in asdict(w).items() if k in _WORKER_FACTS} for w in status.workers]
        content = {"machine": machine_facts(), "workers": workers, "repeats": repeats, "tables": report}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {json_path}")


_WORKER_FACTS = {"role", "model", "device", "dtype", "draft_method", "num_blocks", "block_size"}


async def _measure(
    console: Console,
    server: str | None,
    configs: Sequence[BenchConfig],
    prompts: Sequence[Any],
    params: SamplingParams,
    repeats: int,
) -> tuple[list[BenchRow], ServiceStatus]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def on_run(config: BenchConfig, repeat: int) -> None:
            progress.update(task, description=f"{config.label}: run {repeat + 1} of {repeats}")

        async with AsyncClient(server) as client:
            rows = await run_benchmark(client, configs, prompts, params, num_repeats=repeats, on_run=on_run)
            return rows, await client.status()


def render(rows: Sequence[BenchRow], title: str) -> Table:
    """The comparison as a table; `of sd` is the speed relative to sd with the same m."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in ("mode", "m", "in flight", "tokens/s", "of sd", "VSR", "accepted", "t_draft", "t_verify", "step"):
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    table.add_column("overlap eff.", justify="right")
    table.add_column("verifier busy", justify="right")
    base = next((row for row in rows if row.config.mode is Mode.SD), None)
    for row in rows:
        has_drafts = row.config.mode is not Mode.AR
        table.add_row(
            row.config.mode.value,
            str(row.config.max_batch_size),
            str(row.config.num_in_flight),
            f"{row.median('tokens_per_s'):.1f}",
            f"{row.median('tokens_per_s') / base.median('tokens_per_s'):.2f}x" if base is not None else "",
            f"{row.median('vsr'):.0%}" if has_drafts else "-",
            f"{row.median('mean_accepted_len'):.2f}" if has_drafts else "-",
            f"{row.median('draft_ms'):.1f} ms" if has_drafts else "-",
            f"{row.median('verify_ms'):.1f} ms",
            f"{row.median('step_ms'):.1f} ms",
            f"{row.median('overlap_efficiency'):.2f}",
            f"{row.median('verifier_busy'):.0%}",
        )
    if base is not None:
        table.caption = f"overlapping alone could give {overlap_bound(base):.2f}x over sd with the same m, never more"
    return table


def machine_facts() -> dict[str, Any]:
    """What a reader must know of the machine to compare numbers."""
    model, flags = "", set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            model = value.strip() if key.strip() == "model name" else model
            flags |= set(value.split()) if key.strip() == "flags" else set()
    except OSError:
        model = platform.processor()
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {"cpu": model, "cores": os.cpu_count(), "instructions": [name for name in known if name in flags]}


def _parse_modes(text: str) -> set[Mode]:
    try:
        return {Mode(name.strip()) for name in text.split(",")}
    except ValueError:
        raise ConfigError("modes", text, f"a list of {', '.join(mode.value for mode in Mode)}") from None


def _parse_ints(field: str, text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1 or max(values) > 256:
        raise ConfigError(field, text, "a list of numbers in [1, 256], like 2,4,8")
    return values
