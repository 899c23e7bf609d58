"""scripts/forecast/capacity: what a service does at its limits, simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from minedraft.cli.console import run
from scripts.lib.forecast.files import write_rows
from scripts.lib.forecast.scenarios import Outcome, crowd, dying_drafter, large_pair, slow_link, small_pair

_SCENARIOS = ("crowd", "link", "faults")
_TITLES = {
    "crowd": "1,000 in flight, 10,000 more: llama 8b + 1b, an H100 each; 128 + 64 tokens",
    "link": "A distant drafter: the same pair, 32 in flight, k = 3",
    "faults": "A dying drafter: llama 70b on 4 H100 + 8b on one, 32 in flight, 256 + 256 tokens",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(_SCENARIOS), metavar="[SCENARIO]...")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path),
    default=Path("scripts/results/forecast/capacity.json"),
    show_default=True,
    help="Result file.",
)
def main(names: Sequence[str], path: Path) -> None:
    """Simulate a service at its limits, and show queueing, throughput and memory.

    \b
    crowd    1,000 requests in flight and 10,000 more at the same moment
    link     a drafter whose messages take longer and longer
    faults   a drafter that dies every minute and has to load again

    Without a SCENARIO, all of them. The product's own scheduler runs in virtual time, on workers that take as long as
    the GPUs' data sheets say; the same file comes out each time.
    """
    names = names or _SCENARIOS
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    outcomes: dict[str, list[Outcome]] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        for name in dict.fromkeys(names):
            progress.update(task, description=name)
            outcomes[name] = list(_run(name))
    console = Console()
    for name, found in outcomes.items():
        console.print(outcomes_table(found, _TITLES[name]))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: {"title": _TITLES[name], "rows": list(map(outcome_json, of))} for name, of in outcomes.items()}
    write_rows(content, path)


def _run(name: str) -> Iterator[Outcome]:
    match name:
        case "crowd":
            yield from crowd(small_pair(), 1000, 10000, (128, 64))
            yield from crowd(small_pair(), 1000, 10000, (128, 64), max_waiting=256)
        case "link":
            yield from slow_link(small_pair(), (0.1, 1, 2, 5, 10, 20))
        case _:
            yield from dying_drafter(large_pair(), 60, 10, 1024)


def outcomes_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Return a scenario's outcomes."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    for name in ("setting", "mode", "tok/s", "queue", "p99", "TTFT", "TPOT", "KV", "refused", "s"):
        table.add_column(name, justify="left" if name in ("setting", "mode") else "right", no_wrap=True)
    for outcome in outcomes:
        run = outcome.run
        table.add_row(
            outcome.what,
            outcome.mode.value,
            f"{run.tokens_per_s:.0f}",
            f"{run.queue.p50:.1f}",
            f"{run.queue.p99:.1f}",
            f"{run.first_token.p50:.1f}",
            f"{run.per_token.p50 * 1e3:.0f}",
            f"{outcome.kv_share:.0%}",
            str(run.num_refused),
            f"{run.seconds:.0f}",
        )
    table.caption = "queue, TTFT, s (all of it): seconds, medians and p99; TPOT: ms; KV: at most."
    return table


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome's figures; times in seconds."""
    run = outcome.run
    return {
        "setting": outcome.what,
        "mode": outcome.mode.value,
        "tokens_per_s": run.tokens_per_s,
        "queue_s": {"p50": run.queue.p50, "p99": run.queue.p99},
        "first_token_s": {"p50": run.first_token.p50, "p99": run.first_token.p99},
        "per_token_s": {"p50": run.per_token.p50, "p99": run.per_token.p99},
        "peak_kv_tokens": run.peak_kv_tokens,
        "peak_kv_share": outcome.kv_share,
        "num_steps": run.num_steps,
        "num_failed": run.num_failed,
        "num_refused": run.num_refused,
        "seconds": run.seconds,
    }


if __name__ == "__main__":
    run(main, "scripts/forecast/capacity")
