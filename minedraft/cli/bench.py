"""`minedraft bench`: the modes side by side on a running service, as a table and as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from minedraft.bench.prompts import BenchPrompt, load_prompts
from minedraft.bench.report import BenchTable, render_rows, run_with_progress, write_report
from minedraft.bench.runner import default_configs
from minedraft.cli.console import say
from minedraft.client import AsyncClient
from minedraft.errors import ConfigError
from minedraft.flags import UserPath
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
@click.option("--prompts", "prompts_path", default=None, type=UserPath(), help="JSON list of prompts.")
@click.option("--json", "json_path", default=None, type=UserPath(), help="Write everything here too.")
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

    The service must have been started with --allow-configure, for its mode is switched between runs;
    at the end, or when this is interrupted, it goes back to its own:

    \b
        minedraft-launch --allow-configure &
        minedraft bench -m 2,4,8 -k 3 --repeats 5 --json result.json
    """
    prompts = load_prompts(prompts_path)
    params = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens, ignore_eos=True)
    plan = [(m, k) for m in _parse_ints("max-batch-size", sizes) for k in _parse_ints("draft-len", draft_lens)]
    try:
        asyncio.run(_bench(server, plan, _parse_modes(modes), prompts, num_prompts, params, repeats, json_path))
    except KeyboardInterrupt:
        say("interrupted; the service goes back to its own settings")
        raise click.Abort from None


async def _bench(
    server: str | None,
    plan: Sequence[tuple[int, int]],
    modes: set[Mode],
    prompts: Sequence[BenchPrompt],
    num_prompts: int | None,
    params: SamplingParams,
    repeats: int,
    json_path: Path | None,
) -> None:
    console = Console()
    tables: list[BenchTable] = []
    async with AsyncClient(server) as client, client.borrow() as loan:
        for size, draft_len in plan:
            configs = [config for config in default_configs(size, draft_len) if config.mode in modes]
            chosen = [prompts[i % len(prompts)] for i in range(num_prompts or 2 * size)]
            rows = await run_with_progress(console, client, loan, configs, chosen, params, repeats)
            tables.append((chosen, params, rows))
            console.print(f"\n{len(chosen)} prompts, {params.max_new_tokens} tokens each")
            console.print(render_rows(rows))
            if json_path is not None:  # after every table: an interrupted run keeps what it has
                write_report(json_path, tables, await client.status(), repeats)
    if json_path is not None:
        console.print(f"written to {json_path}", markup=False)


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
