"""scripts/bench/drafts: ways to make and to choose drafts, compared on services that differ in nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import progress_printer, run
from minedraft.client import AsyncClient
from minedraft.local import serve
from minedraft.models.catalogue import ensure_pair
from minedraft.sampling_params import SamplingParams

# The first way of each comparison is what the others are compared with.
WAYS: dict[str, dict[str, dict[str, object]]] = {
    "lookup": {"model": {"lookup": False}, "model and lookup": {"lookup": True}},
    "policy": {
        "fixed": {"draft_policy": "fixed"},
        "tetris": {"draft_policy": "tetris"},
        "tetris-exact": {"draft_policy": "tetris-exact"},
    },
    "draft-len": {
        "auto": {"draft_len": "auto", "lookup": False},
        **{f"k = {k}": {"draft_len": k, "lookup": False} for k in (1, 2, 4)},
    },
    "drafter": {"shipped": {"lookup": False}},
}


@dataclass(frozen=True, slots=True)
class DraftsRun:
    """One run of one way. tokens_per_round: output tokens per request and round; draft_ms, verify_ms: of a batch."""

    tokens_per_s: float
    tokens_per_round: float
    drafts_per_round: float
    vsr: float
    draft_ms: float
    verify_ms: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--vary", type=click.Choice(sorted(WAYS)), required=True, help="What the services differ in.")
@click.option("--mode", default="minedraft", show_default=True, type=click.Choice(["sd", "minedraft"]))
@click.option("-m", "--max-batch-size", "sizes", default="4,8", show_default=True, help="Requests per batch.")
@click.option("-k", "--draft-len", default=2, show_default=True, type=click.IntRange(1))
@click.option("-e", "--extra-drafts", default=1, show_default=True, type=click.IntRange(1))
@click.option("--temperatures", default="0,0.8", show_default=True)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--max-new-tokens", default=40, show_default=True, type=click.IntRange(1))
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), help="As for minedraft bench.")
@click.option("--by-kind", is_flag=True, help="Run the prompts of each kind by themselves.")
@click.option("--drafter", "drafters", multiple=True, type=(str, str), metavar="NAME DIR", help="Another drafter.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Add all figures to this file.")
def main(vary: str, drafters: tuple[tuple[str, str], ...], json_path: Path | None, **options: object) -> None:
    """Compare ways to make drafts (lookup, drafter, draft-len) or to choose those to verify (policy) on the default
    pair.

    One service for each way runs all the time; runs are interleaved, and ratios are medians over pairs of runs that
    follow one another.

    \b
    Examples:
      scripts/bench/drafts --vary policy --json scripts/results/studies/tetris.json
      scripts/bench/drafts --vary lookup --by-kind -m 4 --json scripts/results/studies/lookup.json
      scripts/bench/drafts --vary drafter --drafter small DIR --mode sd -m 8
    """
    target = str(ensure_pair("smollm2", progress_printer()).target) if drafters else None
    named = {name: {"target": target, "draft": folder, "lookup": False} for name, folder in drafters}
    rows = asyncio.run(_compare(WAYS[vary] | named, **options))  # type: ignore[arg-type]
    table = Table("setting", "way", "tok/s", "of first", "tokens/round", "drafts/round", "VSR")
    for row in rows:
        figures = [f"{row[name]:.2f}" for name in ("ratio", "tokens_per_round", "drafts_per_round", "vsr")]
        table.add_row(row["setting"], row["way"], f"{row['tokens_per_s']:.1f}", *figures)
    Console(width=110).print(table)
    if json_path is not None:
        plain = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
        known = json.loads(json_path.read_text()) if json_path.exists() else {"rows": []}
        settings = {row["setting"] for row in rows}
        others = [row for row in known["rows"] if row["setting"] not in settings]
        content = {"machine": machine_facts(), "vary": vary, "options": plain, "rows": [*others, *rows]}
        json_path.write_text(json.dumps(content, indent=1) + "\n")


async def _compare(
    ways: dict[str, dict[str, object]],
    *,
    mode: str,
    sizes: str,
    draft_len: int,
    extra_drafts: int,
    temperatures: str,
    repeats: int,
    max_new_tokens: int,
    prompts: Path | None,
    by_kind: bool,
) -> list[dict[str, Any]]:
    loaded = load_prompts(prompts)
    groups = {kind: [p for p in loaded if p.kind == kind] for kind in dict.fromkeys(p.kind for p in loaded)}
    rows = []
    for size in map(int, sizes.split(",")):
        async with AsyncExitStack() as stack:
            common = {"mode": mode, "max_batch_size": size, "draft_len": draft_len, "extra_drafts": extra_drafts}
            clients = {
                way: await stack.enter_async_context(serve(**(common | own)))  # type: ignore[arg-type]
                for way, own in ways.items()
            }
            for temperature in map(float, temperatures.split(",")):
                params = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens)
                for name, group in (groups if by_kind else {"all": loaded[: 4 * size]}).items():
                    setting = f"{mode} m={size} k={draft_len} T={temperature:g} {name}"
                    rows += _summary(setting, await _interleaved(clients, group, params, repeats))
    return rows


async def _interleaved(
    clients: dict[str, AsyncClient], prompts: Sequence[BenchPrompt], params: SamplingParams, repeats: int
) -> dict[str, list[DraftsRun]]:
    runs: dict[str, list[DraftsRun]] = defaultdict(list)
    for repeat in range(repeats + 1):
        order = list(clients)[:: 1 if repeat % 2 else -1]
        for way in order:
            result = await _measure(clients[way], prompts, params)
            if repeat:  # the first one warms up
                runs[way].append(result)
    return {way: runs[way] for way in clients}


async def _measure(client: AsyncClient, prompts: Sequence[BenchPrompt], params: SamplingParams) -> DraftsRun:
    started_s = time.monotonic()
    calls = [client.complete([{"role": "user", "content": prompt.text}], params) for prompt in prompts]
    outputs = await asyncio.gather(*calls)
    elapsed_s = time.monotonic() - started_s
    status = await client.status()
    usages = [output.usage for output in outputs if output.usage is not None]
    num_rounds, num_drafts = sum(u.rounds for u in usages), sum(u.drafted_tokens for u in usages)
    num_tokens, num_accepted = sum(u.output_tokens for u in usages), sum(u.accepted_tokens for u in usages)
    vsr = num_accepted / max(num_drafts, 1)
    return DraftsRun(
        num_tokens / elapsed_s, num_tokens / num_rounds, num_drafts / num_rounds, vsr, status.draft_ms, status.verify_ms
    )


def _summary(setting: str, runs: dict[str, list[DraftsRun]]) -> list[dict[str, Any]]:
    first = next(iter(runs.values()))
    rows = []
    for way, own in runs.items():
        names = DraftsRun.__slots__
        ratio = median(a.tokens_per_s / b.tokens_per_s for a, b in zip(own, first, strict=True))
        medians = {name: median(getattr(one, name) for one in own) for name in names}
        rows.append({"setting": setting, "way": way, "ratio": ratio, **medians, "runs": [asdict(one) for one in own]})
    return rows


if __name__ == "__main__":
    run(main, "scripts/bench/drafts")
