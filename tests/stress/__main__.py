"""Sends a random load to real services and compares the answers with those of the models alone."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from minedraft.types import Mode
    from tests.stress.presets import Preset
    from tests.stress.runner import Outcome, Patience
    from tests.stress.truth import Truth

MIN_LOAD_S = 5.0

EPILOG = """
\b
Examples:
  scripts/stress --minutes 5                            every preset, in mode minedraft
  scripts/stress --minutes 30 --mode all                every preset in every mode
  scripts/stress --minutes 2 --preset small-kv --seed 7 one preset, the same load again
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--minutes", default=3.0, show_default=True, help="Minutes of load in total, shared equally by the presets."
)
@click.option(
    "--seed", type=int, default=None, metavar="N", help="Seed of the load; default: a random one, which is printed."
)
@click.option(
    "--mode",
    type=click.Choice(["minedraft", "sd", "ar", "all"]),
    default="minedraft",
    show_default=True,
    help="Mode of the services; all: every preset in every mode.",
)
@click.option(
    "--preset",
    "names",
    multiple=True,
    metavar="NAME",
    help="Run only this preset (see --list); repeatable.",
)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(1, 256), help="Number of clients.")
@click.option("--hang-s", default=30.0, show_default=True, help="Fail if a request gets nothing for this long.")
@click.option(
    "--stall-s", default=10.0, show_default=True, help="Fail if no round ends for this long while requests are live."
)
@click.option("--list", "is_list", is_flag=True, help="Show the presets and exit.")
def main(
    minutes: float,
    seed: int | None,
    mode: str,
    names: tuple[str, ...],
    clients: int,
    hang_s: float,
    stall_s: float,
    is_list: bool,
) -> None:
    """Start the service with tiny random models, once for each preset, and send it a random load.

    Requests of all sizes and kinds come in bursts, in a trickle or alone, with every sampling parameter;
    some are aborted, dropped, late or invalid. It checks that greedy tokens equal transformers' generate,
    seeded answers repeat, nothing hangs, every error is typed, drafting stays on, all KV, files and
    memory are freed, and nothing is left after the stop.

    Ctrl-C ends the load; the checks and the summary follow.
    Exit codes: 0 all checks passed, 1 a check failed, 2 wrong command line.
    """
    from minedraft.types import Mode
    from tests.stress.presets import PRESETS
    from tests.stress.runner import Patience

    if is_list:
        for preset in PRESETS.values():
            click.echo(f"{preset.name:14} {preset.purpose}")
        return
    if unknown := set(names) - PRESETS.keys():
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))}: known presets: {', '.join(PRESETS)}", param_hint="--preset"
        )
    modes = list(Mode) if mode == "all" else [Mode(mode)]
    plan = list(product([PRESETS[name] for name in names or PRESETS], modes))
    if minutes * 60 / len(plan) < MIN_LOAD_S:
        least = len(plan) * MIN_LOAD_S / 60
        raise click.BadParameter(f"{len(plan)} services need at least {least:.1f} minutes", param_hint="--minutes")
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}: {len(plan)} services, {minutes * 60 / len(plan):.0f} s of load each")
    with tempfile.TemporaryDirectory(prefix="minedraft-stress-") as folder:
        outcomes = asyncio.run(
            run_all(plan, Path(folder), seed, minutes * 60 / len(plan), clients, Patience(hang_s, stall_s))
        )
    sys.exit(summarise(outcomes, seed, clients))


async def run_all(
    plan: list[tuple[Preset, Mode]], folder: Path, seed: int, seconds: float, num_clients: int, patience: Patience
) -> list[Outcome]:
    """Run the presets of the plan, one after the other, until Ctrl-C."""
    from tests.stress.models import make_pair
    from tests.stress.runner import run_preset
    from tests.stress.truth import Truth

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_interrupt() -> None:
        click.echo("ending the load (Ctrl-C again to stop now)")
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    truths: dict[Path, Truth] = {}
    outcomes: list[Outcome] = []
    for preset, mode in plan:
        pair = make_pair(folder, preset.pair)
        if pair.target not in truths:
            click.echo("generating the expected answers with the target alone")
            truths[pair.target] = Truth(pair, seed)
        started_s = time.monotonic()
        click.echo(f"{preset.name}/{mode.value}: starting; {preset.purpose}")
        outcome = await run_preset(
            preset, mode, pair, truths[pair.target], Path(tempfile.mkdtemp(dir=folder)),
            seed=str(seed), seconds=seconds, num_clients=num_clients, patience=patience,
            report=click.echo, stop=stop,
        )  # fmt: skip
        outcomes.append(outcome)
        verdict = f"BROKEN: {outcome.problem.splitlines()[0]}" if outcome.problem else "all held"
        click.echo(f"{outcome.name}: {verdict} ({time.monotonic() - started_s:.0f} s with start and stop)")
        if stop.is_set():
            break
    return outcomes


def summarise(outcomes: list[Outcome], seed: int, num_clients: int) -> int:
    """Print the results. Return the exit code."""
    broken = [outcome for outcome in outcomes if outcome.problem]
    click.echo()
    for outcome in outcomes:
        click.echo(f"{'BROKEN' if outcome.problem else 'held  '} {outcome.line()}")
    num_requests = sum(outcome.ends.total() for outcome in outcomes)
    num_exact = sum(outcome.num_exact for outcome in outcomes)
    num_tokens = sum(outcome.num_tokens for outcome in outcomes)
    click.echo(f"{num_requests} requests, {num_tokens} tokens; {num_exact} whole answers equal generate's")
    for outcome in broken:
        click.echo(f"\n{outcome.name}, after {outcome.load_s:.1f} s of load: {outcome.problem}")
        again = f"--seed {seed} --clients {num_clients} --preset {outcome.preset.name} --mode {outcome.mode.value}"
        click.echo(f"again: scripts/stress {again}")
    return 1 if broken else 0


if __name__ == "__main__":
    main(prog_name="scripts/stress")
