"""scripts/bench/modes: which mode is the fastest at which load, and what the automatic one makes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import progress_printer, run, say
from minedraft.local import serve
from minedraft.models.catalogue import PAIRS, ensure_pair
from minedraft.types import Mode

_LEAST_REQUESTS = 4  # of a run: one prompt is no sample


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pair", type=click.Choice(list(PAIRS)), default="smollm2", show_default=True, help="Models to serve.")
@click.option("--target", type=click.Path(path_type=Path), default=None, help="A target folder, instead of a pair.")
@click.option("--draft", type=click.Path(path_type=Path), default=None, help="The draft folder beside --target.")
@click.option("--in-flight", default="1,2,4,8,16,32", show_default=True, help="Requests at a time.")
@click.option("--modes", default="ar,sd,minedraft", show_default=True, help="Fixed modes beside auto; also: pearl.")
@click.option("-k", "--draft-lens", default="2,4", show_default=True, help="Draft lengths of the modes with drafts.")
@click.option("--kind", default=None, help="Only prompts of this kind: chat, code, summarise or tools.")
@click.option("--max-new-tokens", default=48, show_default=True, type=click.IntRange(1, 1024), help="Tokens an answer.")
@click.option("--waves", default=3, show_default=True, type=click.IntRange(1), help="Requests of a run, in loads.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs of each way.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Result file.  [default: scripts/results/modes/PAIR.json]"
)
def modes(
    pair: str,
    target: Path | None,
    draft: Path | None,
    in_flight: str,
    modes: str,
    draft_lens: str,
    kind: str | None,
    max_new_tokens: int,
    waves: int,
    repeats: int,
    path: Path | None,
) -> None:
    """Measure fixed modes and auto at several loads, interleaved, and say which is the fastest.

    Each load is so many requests at a time: when one ends, the next one comes, until --waves times as many are done,
    and at least 4. So it is the same requests in every mode, and the slow ones among them have others beside them.

    Two services run on the same cores, one at a time: the fixed modes are set in one, and the other one chooses
    by itself and learns from nothing else. Its first run at each load, in which it gets to know it, counts apart.
    """
    if target is None:
        folders = ensure_pair(pair, progress_printer())
        target, draft = folders.target, folders.draft
    loads = [int(part) for part in in_flight.split(",")]
    lens = [int(part) for part in draft_lens.split(",")]
    fixed = [Mode(part) for part in modes.split(",")]
    ways = [(mode, k) for mode in fixed for k in (lens if mode.has_drafts else [0])]
    prompts = [prompt for prompt in load_prompts(None) if kind in (None, prompt.kind)]
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    rows = asyncio.run(_measure(target, draft, loads, ways, _Requests(prompts, params, waves), repeats))
    _show(rows)
    content = {"machine": machine_facts(), "models": [target.name, draft.name if draft else None], "rows": rows}
    path = path or Path(f"scripts/results/modes/{pair}.json")
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Requests:
    """What is asked for. waves: requests of a run, as a multiple of those in flight."""

    prompts: Sequence[BenchPrompt]
    params: SamplingParams
    waves: int

    async def rate(self, client: AsyncClient, num_in_flight: int) -> float:
        """Return the output tokens per second of a run, prompts included."""
        waiting = iter(range(max(self.waves * num_in_flight, _LEAST_REQUESTS)))

        async def ask_in_turn() -> int:
            num_tokens = 0
            for number in waiting:
                messages = [{"role": "user", "content": self.prompts[number % len(self.prompts)].text}]
                num_tokens += len((await client.complete(messages, self.params)).token_ids)
            return num_tokens

        started_s = time.monotonic()
        counts = await asyncio.gather(*[ask_in_turn() for _ in range(num_in_flight)])
        return sum(counts) / (time.monotonic() - started_s)


async def _measure(
    target: Path,
    draft: Path | None,
    loads: Sequence[int],
    ways: Sequence[tuple[Mode, int]],
    requests: _Requests,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return a row for each load: tokens per second of each way, and what auto said."""
    size = -(-max(loads) // 2)
    rows = []
    async with (
        serve(target, draft, max_batch_size=size, allow_configure=True, on_line=say) as fixed,
        serve(target, draft, max_batch_size=size, on_line=say) as auto,
    ):
        for num in loads:
            rates: dict[str, list[float]] = {}
            first = await requests.rate(auto, num)  # it gets to know the load
            for _ in range(repeats):
                async with fixed.borrow() as loan:
                    for mode, k in ways:
                        if num < mode.num_batches:
                            continue
                        await loan.configure(mode, -(-num // mode.num_batches), k)
                        name = f"{mode.value} k={k}" if k else mode.value
                        rates.setdefault(name, []).append(await requests.rate(fixed, num))
                rates.setdefault("auto", []).append(await requests.rate(auto, num))
            status = await auto.status()
            row = {"in_flight": num, "tokens_per_s": {name: median(runs) for name, runs in rates.items()}}
            said = {"auto_mode": status.mode, "why": status.mode_reason}
            rows.append(row | {"runs": rates, "auto_at_first": first} | said)
            shown = ", ".join(f"{name} {median(runs):.3g}" for name, runs in rates.items())
            say(f"{num} in flight, tokens/s: {shown}; auto runs {status.mode}")
    return rows


def _show(rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["tokens_per_s"]))
    table = Table("in flight", *names, "auto of the best", "at first", "auto runs")
    for row in rows:
        rates = row["tokens_per_s"]
        best = max(rate for name, rate in rates.items() if name != "auto")
        cells = [f"{rates[name]:.0f}" if name in rates else "" for name in names]
        shares = [f"{rate / best:.2f}" for rate in (rates["auto"], row["auto_at_first"])]
        table.add_row(str(row["in_flight"]), *cells, *shares, row["auto_mode"])
    Console().print(table)


if __name__ == "__main__":
    run(modes, "scripts/bench/modes")
