"""`minedraft bench`: compares the modes on a running service, as a table and as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from minedraft.bench.prompts import BenchPrompt, load_prompts
from minedraft.bench.report import BenchTable, render_rows, run_with_progress, write_report
from minedraft.bench.runner import BenchConfig, default_configs
from minedraft.cli.console import parse_ints, say
from minedraft.cli.flags.connection import Connection, connection_flags
from minedraft.client import AsyncClient
from minedraft.errors import ConfigError
from minedraft.sampling_params import MAX_DRAFT_LEN, SamplingParams
from minedraft.settings.flags import UserPath
from minedraft.types import MAX_BATCH_SIZE, Mode

_EPILOG = """
\b
Start a service first, in another terminal:
  minedraft-launch --allow-configure
\b
Examples:
  minedraft bench
  minedraft bench -m 2,4,8 -k 3 --repeats 5 --json result.json
  minedraft bench -m 1 --modes ar,sd,pearl
"""


@click.command(epilog=_EPILOG)
@connection_flags
@click.option("-m", "--max-batch-size", "sizes", metavar="N,...", default="4", help="Requests per batch. [default: 4]")
@click.option("-k", "--draft-len", "draft_lens", metavar="N,...", default="3", help="Drafts per round. [default: 3]")
@click.option("--modes", metavar="MODE,...", default="ar,sd,minedraft", show_default=True, help="Modes to compare.")
@click.option("--num-prompts", metavar="N", default=None, type=click.IntRange(1), help="Prompts per run. [default: 2m]")
@click.option(
    "--max-new-tokens",
    metavar="N",
    default=64,
    type=click.IntRange(1),
    help="Tokens per answer, exactly. [default: 64]",
)
@click.option("--temperature", metavar="X", default=0.0, help="0: greedy; above: sampled. [default: 0]")
@click.option(
    "--repeats", metavar="N", default=3, type=click.IntRange(1), help="Runs per row; medians are shown. [default: 3]"
)
@click.option(
    "--prompts",
    "prompts_path",
    metavar="FILE.json",
    default=None,
    type=UserPath(),
    help='List of {"prompt": TEXT}, instead of the built-in prompts.',
)
@click.option(
    "--json", "json_path", metavar="FILE.json", default=None, type=UserPath(), help="Also write all measurements here."
)
def bench(
    connection: Connection,
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
    """Compare the modes ar, sd, minedraft and pearl on a running service.

    The service must run with --allow-configure, because each run sets its mode, and with a drafter,
    unless --modes is ar. When the benchmark ends or is interrupted, the service goes back to its own
    settings. Each pair of -m and -k gives one table.
    """
    prompts = load_prompts(prompts_path)
    params = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens, ignore_eos=True)
    plan = [
        (m, k)
        for m in parse_ints("max-batch-size", sizes, MAX_BATCH_SIZE)
        for k in parse_ints("draft-len", draft_lens, MAX_DRAFT_LEN)
    ]
    try:
        asyncio.run(_bench(connection, plan, _parse_modes(modes), prompts, num_prompts, params, repeats, json_path))
    except KeyboardInterrupt:
        say("interrupted; the service goes back to its own settings")
        raise click.Abort from None


async def _bench(
    connection: Connection,
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
    async with AsyncClient(connection.server, **connection.access) as client, client.borrow() as loan:
        for size, draft_len in plan:
            known = [*default_configs(size, draft_len), BenchConfig(Mode.PEARL, 2 * size, draft_len)]
            configs = [config for config in known if config.mode in modes]
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
        raise ConfigError(
            "modes", text, f"must be one or more of {', '.join(mode.value for mode in Mode)}, separated by commas"
        ) from None
