"""scripts/bench/studies/sizes: which drafter of a target, and which k, gives the most tokens/s in each mode."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from minedraft import AsyncClient, Output, SamplingParams
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run, say
from minedraft.local import serve
from minedraft.types import Mode

LEAST_REQUESTS = 4  # of a run: one prompt alone says little of a drafter


@dataclass(frozen=True, slots=True)
class Way:
    """A mode, its k, and the number of requests that are sent together; k is 0 in ar."""

    mode: Mode
    draft_len: int
    in_flight: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", type=click.Path(path_type=Path), required=True, help="Folder of the target.")
@click.option(
    "--drafter", "drafters", multiple=True, required=True, type=(str, click.Path(path_type=Path)), metavar="NAME DIR"
)
@click.option("--head", "heads", multiple=True, type=(str, click.Path(path_type=Path)), metavar="NAME DIR")
@click.option("--in-flight", default="1,4,8,16", show_default=True, help="Requests that are sent together.")
@click.option("-k", "--draft-lens", default="1,2,3,4", show_default=True, help="Draft lengths.")
@click.option("--modes", default="sd,minedraft", show_default=True, help="Modes besides ar.")
@click.option("--max-new-tokens", default=32, show_default=True, type=click.IntRange(1, 1024), help="Tokens an answer.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs of each way.")
@click.option(
    "--seconds", type=click.FloatRange(0), default=0.0, help="After which no further repeat begins; 0: no limit."
)
@click.option("--json", "path", type=click.Path(path_type=Path), required=True, help="Add all figures to this file.")
def sizes(
    target: Path,
    drafters: tuple[tuple[str, Path], ...],
    heads: tuple[tuple[str, Path], ...],
    in_flight: str,
    draft_lens: str,
    modes: str,
    max_new_tokens: int,
    repeats: int,
    seconds: float,
    path: Path,
) -> None:
    """Measure drafters of one target in sd and minedraft at several loads and k, beside ar.

    One service for each drafter runs all the time, one at a time works, and their runs follow one another. Every
    way is run once before any is repeated.
    """
    chosen = [Mode(name) for name in modes.split(",")]
    ways = [
        Way(mode, k, num)
        for num in map(int, in_flight.split(","))
        for mode in (Mode.AR, *chosen)
        for k in ([0] if mode is Mode.AR else map(int, draft_lens.split(",")))
        if num >= mode.num_batches
    ]
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    served: dict[str, dict[str, object]] = {name: {"draft": folder} for name, folder in drafters}
    served |= {name: {"draft": folder, "draft_method": "eagle"} for name, folder in heads}
    machine = machine_facts()
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []

    def keep(rows: Sequence[dict[str, Any]]) -> None:
        measured = {_key(row) for row in rows}
        content = {
            "machine": machine,
            "target": target.name,
            "max_new_tokens": max_new_tokens,
            "rows": [*(row for row in known if _key(row) not in measured), *rows],
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    _show(asyncio.run(_measure(target, served, ways, load_prompts(None), params, repeats, seconds, keep)))


async def _measure(
    target: Path,
    served: dict[str, dict[str, object]],
    ways: Sequence[Way],
    prompts: Sequence[BenchPrompt],
    params: SamplingParams,
    repeats: int,
    seconds: float,
    keep: Callable[[Sequence[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    began_s = time.monotonic()
    size = max(way.in_flight for way in ways)
    found: dict[tuple[str, Way], list[dict[str, float]]] = {}
    async with AsyncExitStack() as stack:
        loans = {}
        for name, own in served.items():
            common = {"max_batch_size": size, "lookup": False, "allow_configure": True}
            service = serve(target, **(common | own))  # type: ignore[arg-type]
            client = await stack.enter_async_context(service)
            loans[name] = (client, await stack.enter_async_context(client.borrow()))
            say(f"{name} is served")
        for repeat in range(repeats):
            for way in ways:
                if repeat and seconds and time.monotonic() - began_s > seconds:
                    break
                # ar has no drafter: one service's is enough.
                order = list(loans)[:1] if way.mode is Mode.AR else list(loans)[:: 1 if repeat % 2 else -1]
                for name in order:
                    client, loan = loans[name]
                    await loan.configure(way.mode, -(-way.in_flight // way.mode.num_batches), way.draft_len)
                    key = ("" if way.mode is Mode.AR else name, way)
                    found.setdefault(key, []).append(await _run(client, way.in_flight, prompts, params))
                keep([_row(name, way, runs) for (name, way), runs in found.items()])
    return [_row(name, way, runs) for (name, way), runs in found.items()]


async def _run(
    client: AsyncClient, num: int, prompts: Sequence[BenchPrompt], params: SamplingParams
) -> dict[str, float]:
    """Keep `num` requests in flight. Return tokens/s, prompts included, tokens a round, and the batches' times."""
    places = asyncio.Semaphore(num)

    async def answer(prompt: BenchPrompt) -> Output:
        async with places:
            return await client.complete([{"role": "user", "content": prompt.text}], params)

    started_s = time.monotonic()
    outputs = await asyncio.gather(*(answer(prompts[i % len(prompts)]) for i in range(max(num, LEAST_REQUESTS))))
    elapsed_s = time.monotonic() - started_s
    status = await client.status()
    usages = [output.usage for output in outputs if output.usage is not None]
    num_tokens, num_rounds = sum(u.output_tokens for u in usages), sum(u.rounds for u in usages)
    return {
        "tokens_per_s": num_tokens / elapsed_s,
        "tokens_per_round": num_tokens / max(num_rounds, 1),
        "draft_ms": status.draft_ms,
        "verify_ms": status.verify_ms,
    }


def _row(name: str, way: Way, runs: list[dict[str, float]]) -> dict[str, Any]:
    medians = {key: round(median(one[key] for one in runs), 3) for key in runs[0]}
    each = [round(one["tokens_per_s"], 1) for one in runs]
    return {
        "drafter": name,
        "mode": way.mode.value,
        "k": way.draft_len,
        "in_flight": way.in_flight,
        **medians,
        "runs": each,
    }


def _key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["drafter"], row["mode"], row["in_flight"], row["k"]


def best_of(rows: Sequence[dict[str, Any]], drafter: str, mode: str, in_flight: int) -> dict[str, Any] | None:
    """Return a drafter's row with the k that gives the most tokens/s in a mode at a load, None if there is none."""
    same = [row for row in rows if (row["drafter"], row["mode"], row["in_flight"]) == (drafter, mode, in_flight)]
    return max(same, key=lambda row: float(row["tokens_per_s"]), default=None)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    ways = list(dict.fromkeys((row["mode"], row["in_flight"]) for row in rows))
    table = Table("drafter", *(f"{mode} {num}" for mode, num in ways))
    for name in dict.fromkeys(row["drafter"] for row in rows):
        best = [best_of(rows, name, mode, num) for mode, num in ways]
        table.add_row(name or "none", *(f"{one['tokens_per_s']:.0f} (k={one['k']})" if one else "" for one in best))
    Console(width=160).print(table)


if __name__ == "__main__":
    run(sizes, "scripts/bench/studies/sizes")
