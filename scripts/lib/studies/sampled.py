"""scripts/bench/sampled: what drafting brings when tokens are sampled: acceptance, tokens per second, bytes a step."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from minedraft import SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.bench.runner import BenchConfig, BenchRow, measure
from minedraft.cli.console import run, say
from minedraft.local import serve
from minedraft.types import Mode

TEMPERATURE = 0.8


def ways(max_new_tokens: int) -> dict[str, SamplingParams]:
    """Return the sampling parameters of each way to accept drafts. A seed makes it coupled."""
    greedy = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    sampled = replace(greedy, temperature=TEMPERATURE)
    return {"greedy": greedy, "rejection": sampled, "coupled": replace(sampled, seed=7)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", type=click.Path(path_type=Path), help="Target folder; default: that of the default pair.")
@click.option("--draft", type=click.Path(path_type=Path), help="Draft model folder.")
@click.option("--in-flight", default=16, show_default=True, type=click.IntRange(2, 64), help="Requests at a time.")
@click.option("-k", "--draft-len", default=2, show_default=True, type=click.IntRange(1, 16), help="Drafts a round.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Tokens per answer, exactly.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs of each row.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
def main(
    target: Path | None,
    draft: Path | None,
    in_flight: int,
    draft_len: int,
    max_new_tokens: int,
    repeats: int,
    json_path: Path | None,
) -> None:
    """Compare drafting under rejection sampling and with coupled noise, at temperature 0.8, with greedy drafting.

    One service answers the same prompts in each mode and each way, in turn; figures are medians over the repeats.
    In mode ar the verifier has the drafter's cores too.

    \b
    Examples:
      scripts/bench/sampled
      scripts/bench/sampled --target DIR --draft DIR -k 4 --json sampled.json
    """
    rows = asyncio.run(_measure(target, draft, in_flight, draft_len, ways(max_new_tokens), repeats))
    Console().print(_table(rows))
    if json_path is not None:
        tables = [{"way": way, "rows": [row.to_json() for row in group]} for way, group in rows.items()]
        facts = {"machine": machine_facts(), "temperature": TEMPERATURE, "max_new_tokens": max_new_tokens}
        json_path.write_text(json.dumps(facts | {"repeats": repeats, "tables": tables}, indent=1) + "\n", "utf-8")


async def _measure(
    target: Path | None,
    draft: Path | None,
    in_flight: int,
    draft_len: int,
    params: dict[str, SamplingParams],
    repeats: int,
) -> dict[str, list[BenchRow]]:
    configs = [
        BenchConfig(Mode.AR, in_flight, 0),
        BenchConfig(Mode.SD, in_flight, draft_len),
        BenchConfig(Mode.MINEDRAFT, in_flight // 2, draft_len),
    ]
    rows = {way: [BenchRow(config) for config in configs] for way in params}
    prompts = load_prompts(None)[:in_flight]
    models: dict[str, Any] = {"target": target, "draft": draft}
    async with serve(**models, allow_configure=True, on_line=say) as client, client.borrow() as loan:
        for _ in range(repeats):
            for way, sampling in params.items():
                for row in rows[way]:
                    row.runs.append(await measure(client, loan, row.config, prompts, sampling))
    return rows


def _table(rows: dict[str, list[BenchRow]]) -> Table:
    table = Table("way", "mode", "tokens/s", "of ar", "VSR", "accepted a round", "bytes a step")
    for way, group in rows.items():
        for row in group:
            of_ar = row.median("tokens_per_s") / group[0].median("tokens_per_s")
            figures = [f"{row.median('vsr'):.0%}", f"{row.median('mean_accepted_len'):.2f}"]
            table.add_row(
                way,
                row.config.label,
                f"{row.median('tokens_per_s'):.0f}",
                f"{of_ar:.2f}x",
                *(figures if row.config.mode.has_drafts else ["-", "-"]),
                f"{row.median('wire_bytes_per_step'):.0f}",
            )
    return table


if __name__ == "__main__":
    run(main, "scripts/bench/sampled")
