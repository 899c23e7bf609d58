"""What all commands share: exit codes, encodings, output, progress of long jobs."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import click

from minedraft.errors import ConfigError
from minedraft.models.progress import Progress
from minedraft.process.entry import EXIT_REQUEST, EXIT_USAGE, run_command

_PROGRESS_S = 1.0
_STDERR_FD = 2
_Number = TypeVar("_Number", int, float)


def run(command: click.Command, name: str, failed_code: int = EXIT_REQUEST, wrong_code: int = EXIT_USAGE) -> NoReturn:
    """Run a click command and end the process with the documented exit code: see `run_command`."""
    _open_missing_streams()
    _settle_encodings()
    _forget_no_size()
    sys.exit(_run(command, name, failed_code, wrong_code))


def _open_missing_streams() -> None:
    """Have /dev/null in the place of standard streams that were closed before the start (`>&-`, some supervisors):
    Python has None there, and the next file or socket would get the number of one, and what is printed."""
    with suppress(OSError):
        while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR_FD:
            pass
        os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process


def _settle_encodings() -> None:
    """Keep encoding errors from ending a command: characters that the terminal lacks are shown as `?` or
    escaped, and bytes that are not text reach the check that refuses them by name."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _forget_no_size() -> None:
    """Take COLUMNS=0 and LINES=0, which stand for an unknown size, out of the environment: rich would fit its tables
    into no columns, which shows nothing."""
    for name in ("COLUMNS", "LINES"):
        if os.environ.get(name, "").strip() and not os.environ[name].strip().strip("0"):
            del os.environ[name]


def _run(command: click.Command, name: str, failed_code: int, wrong_code: int) -> int:
    try:
        return run_command(
            command,
            name,
            report=lambda text: say(f"{name}: {text}"),
            show_usage=lambda error: error.show(),
            failed_code=failed_code,
            wrong_code=wrong_code,
        )
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return failed_code
    except OSError as error:  # the disk is full, or a file of the command line cannot be used
        say(f"{name}: {error}")
        return failed_code


def say(text: str) -> None:
    """Print one line for the user to stderr, apart from the output.

    A line that cannot be written is dropped: work does not end because its progress cannot be shown.
    """
    with suppress(OSError):
        click.echo(text, err=True)


def show(text: str) -> None:
    """Print model output as it comes; control characters must not reach a terminal, which would obey them."""
    if sys.stdout.isatty():
        text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
    click.echo(text, nl=False)
    sys.stdout.flush()


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"  # elsewhere JSON has its own escapes
    click.echo(json.dumps(value, ensure_ascii=not is_utf8, default=str))


def progress_printer(clock: Callable[[], float] = time.monotonic) -> Callable[[Progress], None]:
    """Return a callback that prints each new step of a long job, and about once a second how far it is.

    Args:
        clock: monotonic seconds.
    """
    last_step, last_s = ("", ""), 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal last_step, last_s
        step, now_s = (progress.model, progress.step), clock()
        if step == last_step and now_s - last_s < _PROGRESS_S:
            return
        last_step, last_s = step, now_s
        far = f" {progress.done / progress.total:4.0%} of {progress.total / 1e6:.0f} MB" if progress.total else ""
        say(f"{progress.step}{far}")

    return on_progress


def parse_ints(field: str, text: str, most: int) -> list[int]:
    """Return the numbers of a list like "1,2,4".

    Raises:
        ConfigError: it has other things, or numbers outside [1, most].
    """
    return _parse_list(field, text, int, 1, most)


def parse_floats(field: str, text: str, most: float) -> list[float]:
    """Return the numbers of a list like "0,0.8".

    Raises:
        ConfigError: it has other things, or numbers outside [0, most].
    """
    return _parse_list(field, text, float, 0, most)


def _parse_list(field: str, text: str, kind: Callable[[str], _Number], least: int, most: float) -> list[_Number]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(least <= value <= most for value in values):  # a NaN is in no range
        raise ConfigError(field, text, f"must be numbers in [{least}, {most:.10g}], separated by commas")
    return values
