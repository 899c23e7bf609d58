"""`minedraft bench`: compares the modes on a running service, as tables and as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import click
from rich.console import Console

from minedraft.bench.datasets.files import ANY_LAYOUT
from minedraft.bench.datasets.layouts import LAYOUTS
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.plan import Sweep, can_share_cores
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import (
    describe_sampling,
    render_latencies,
    render_rows,
    run_with_progress,
    with_runs,
    write_report,
)
from minedraft.bench.runner import BenchTable
from minedraft.bench.traffic import Traffic
from minedraft.cli.console import parse_floats, parse_ints, say
from minedraft.cli.flags.connection import Connection, connection_flags
from minedraft.cli.flags.numbers import NumberRange
from minedraft.cli.readiness import wait_until_loaded
from minedraft.client import AsyncClient, Client
from minedraft.errors import ConfigError
from minedraft.sampling_params import MAX_DRAFT_LEN, MAX_SAMPLES, SamplingParams
from minedraft.settings.flags import UserPath
from minedraft.settings.writable import check_writable_file
from minedraft.types import MAX_BATCH_SIZE, Mode

FIXED, NATURAL, FILE = "fixed", "natural", "dataset"

_EPILOG = """
\b
Start a service first, in another terminal:
  minedraft-launch --allow-configure
\b
Examples:
  minedraft bench
  minedraft bench -m 2,4,8 -k 1,2,3 --repeats 5 --json result.json
  minedraft bench -m 1 --modes ar,sd,pearl
  minedraft bench --dataset question.jsonl --num-prompts 80 --lengths natural
  minedraft bench --rate 2 --num-prompts 60 --temperature 0,0.8 -n 1,2
"""


@click.command(epilog=_EPILOG)
@connection_flags
@click.option("-m", "--max-batch-size", "sizes", metavar="N,...", default="4", help="Requests per batch. [default: 4]")
@click.option("-k", "--draft-len", "draft_lens", metavar="N,...", default="3", help="Drafts per round. [default: 3]")
@click.option("--modes", metavar="MODE,...", default="ar,sd,minedraft", show_default=True, help="Modes to compare.")
@click.option("-n", "--samples", metavar="N,...", default="1", help="Answers per prompt. [default: 1]")
@click.option("--temperature", metavar="X,...", default="0", help="0: greedy; above: sampled. [default: 0]")
@click.option(
    "--num-prompts", metavar="N", default=None, type=click.IntRange(1), help="Prompts per run. [default: 2m / n]"
)
@click.option(
    "--max-new-tokens", metavar="N", default=64, type=click.IntRange(1), help="Most tokens per answer. [default: 64]"
)
@click.option(
    "--lengths",
    type=click.Choice([FIXED, NATURAL, FILE]),
    default=FIXED,
    help="fixed: every answer has --max-new-tokens; natural: it ends where the model ends it; dataset: as the file's "
    "output_tokens say. [default: fixed]",
)
@click.option("--dataset", metavar="FILE", default=None, type=UserPath(), help="Prompts, instead of the built-in ones.")
@click.option("--prompts", "dataset", metavar="FILE", default=None, type=UserPath(), help="The same as --dataset.")
@click.option(
    "--dataset-format",
    "layout",
    type=click.Choice([ANY_LAYOUT, *LAYOUTS]),
    default=ANY_LAYOUT,
    help="The file's layout. [default: auto, by its first record]",
)
@click.option("--chat-template/--no-chat-template", default=True, help="Send messages, or the text alone.")
@click.option("--seed", metavar="N", default=0, type=click.IntRange(0), help="Of the file's prompts and of the times.")
@click.option("--rate", metavar="X", default=None, type=float, help="Requests per second. [default: all at once]")
@click.option("--burstiness", metavar="X", default=1.0, help="With --rate: 1 is a Poisson process, less is burstier.")
@click.option("--concurrency", metavar="N", default=None, type=click.IntRange(1), help="Most requests open at a time.")
@click.option(
    "--repeats", metavar="N", default=3, type=click.IntRange(1), help="Runs per row; medians are shown. [default: 3]"
)
@click.option(
    "--json", "json_path", metavar="FILE.json", default=None, type=UserPath(), help="Also write all measurements here."
)
@click.option("--save-detailed", is_flag=True, help="With --json: also the times of every request.")
@click.option(
    "--timeout-s",
    type=NumberRange(0, 86400),
    default=None,
    metavar="SECONDS",
    help="Longest wait for a service that still loads its models. [default: as long as it loads]",
)
def bench(connection: Connection, timeout_s: float | None, **flags: Any) -> None:  # noqa: ANN401 (of each option)
    """Compare the modes ar, sd, minedraft and pearl on a running service.

    The service must run with --allow-configure, because each run sets its mode, and with a drafter,
    unless --modes is ar. When the benchmark ends or is interrupted, the service goes back to its own
    settings, and what was measured is shown and written. Each combination of -m, -n, --temperature and -k gives one
    table; all runs are interleaved.

    A dataset is a file of Spec-Bench, MT-bench, SPEED-Bench, ShareGPT, HumanEval, vLLM's "custom", or our own list of
    {"prompt", "kind"}; its prompts are shuffled by the seed.
    """
    plan = _Plan.of(flags)
    with Client(connection.server, timeout_s=timeout_s, **connection.access) as client:
        wait_until_loaded(client, timeout_s)
    try:
        asyncio.run(_bench(connection, plan))
    except KeyboardInterrupt:
        say("interrupted; the service goes back to its own settings")
        raise click.Abort from None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to measure, and where to write it."""

    sweep: Sweep
    prompts: Sequence[BenchPrompt]
    sampling: SamplingParams
    traffic: Traffic
    repeats: int
    json_path: Path | None
    is_detailed: bool

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Self:
        """Return the plan of a command line, of which all is checked that needs no service.

        Raises:
            ConfigError: a flag or the file of prompts cannot be used.
        """
        dataset, lengths = flags["dataset"], flags["lengths"]
        sweep = Sweep(
            _parse_modes(flags["modes"]),
            parse_ints("max-batch-size", flags["sizes"], MAX_BATCH_SIZE),
            parse_ints("draft-len", flags["draft_lens"], MAX_DRAFT_LEN),
            parse_ints("samples", flags["samples"], MAX_SAMPLES),
            parse_floats("temperature", flags["temperature"], 100.0),
            flags["num_prompts"],
            prompt_seed=None if dataset is None else flags["seed"],
        )
        traffic = Traffic(
            flags["rate"], flags["burstiness"], flags["concurrency"], flags["seed"], flags["chat_template"],
            lengths == FILE,
        )  # fmt: skip
        check_writable_file("json", flags["json_path"])
        prompts = load_prompts(dataset, flags["layout"])
        sampling = SamplingParams(max_new_tokens=flags["max_new_tokens"], ignore_eos=lengths == FIXED)
        return cls(sweep, prompts, sampling, traffic, flags["repeats"], flags["json_path"], flags["save_detailed"])


async def _bench(connection: Connection, plan: _Plan) -> None:
    console = Console()
    async with AsyncClient(connection.server, **connection.access) as client, client.borrow() as loan:
        status = await client.status()
        sweep = replace(plan.sweep, can_share_cores=can_share_cores(status))
        tables = sweep.tables(plan.prompts, plan.sampling)
        try:
            await run_with_progress(
                Console(stderr=True), client, loan, tables, plan.repeats, plan.traffic, is_detailed=plan.is_detailed
            )
        finally:  # an interrupted benchmark keeps what it has
            done = with_runs(tables)
            for table in done:
                _show(console, table)
            if plan.json_path is not None and done:
                write_report(plan.json_path, done, status, plan.repeats, plan.traffic)
                console.print(f"written to {plan.json_path}", markup=False, soft_wrap=True)


def _show(console: Console, table: BenchTable) -> None:
    sampling = table.sampling
    length = f"{'' if sampling.ignore_eos else 'at most '}{sampling.max_new_tokens} tokens each"
    console.print(f"\n{len(table.prompts)} prompts, {length}{describe_sampling(sampling)}", highlight=False)
    console.print(render_rows(table.rows))
    console.print(render_latencies(table.rows))
    failed = sum(run.vllm["failed"] for row in table.rows for run in row.runs)
    if failed:
        console.print(f"{failed} requests failed; the JSON has their errors", highlight=False)


def _parse_modes(text: str) -> set[Mode]:
    try:
        return {Mode(name.strip()) for name in text.split(",")}
    except ValueError:
        raise ConfigError(
            "modes", text, f"must be one or more of {', '.join(mode.value for mode in Mode)}, separated by commas"
        ) from None
