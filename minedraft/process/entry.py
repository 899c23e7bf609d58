"""The start and the end of every program: its log and its exit code."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NoReturn

import click

from minedraft.errors import (
    EXIT_CONFIG,
    EXIT_INTERNAL,
    EXIT_OK,
    ConfigError,
    ConfigErrors,
    InvalidRequest,
    MineDraftError,
)
from minedraft.process.logs import set_up_log

EXIT_REQUEST = 1
EXIT_USAGE = 2
EXIT_OF_SIGNAL = 128
EXIT_INTERRUPTED = 130

# What `--help` and the documentation show.
COMMAND_EXITS: Mapping[str, str] = {
    f"{EXIT_OK}": "done",
    f"{EXIT_REQUEST}": "no service answers, or it failed; the same may succeed later",
    f"{EXIT_USAGE}": "the command line, a file that it names or the request is wrong",
    f"{EXIT_INTERRUPTED}": "interrupted",
}
SERVICE_EXITS: Mapping[str, str] = {
    f"{EXIT_OK}": "stopped by a signal, after its running requests",
    f"{EXIT_INTERNAL}": "a process failed",
    f"{EXIT_CONFIG}": "the configuration (flags, file, models, devices, addresses) is wrong",
}
LAUNCH_EXITS: Mapping[str, str] = {
    **SERVICE_EXITS,
    f"{EXIT_OF_SIGNAL}+N": "stopped by signal N while loading, or at once by a second one",
}

logger = logging.getLogger(__name__)

tells_version = click.version_option(None, package_name="minedraft", message="%(prog)s %(version)s")
takes_parent = click.option(
    "--exit-with-parent", "parent_pid", type=int, metavar="PID", help="Exit when the parent process PID ends."
)


def run_command(
    command: click.Command,
    name: str,
    *,
    report: Callable[[str], None],
    show_usage: Callable[[click.ClickException], None],
    failed_code: int = EXIT_INTERNAL,
    wrong_code: int = EXIT_CONFIG,
) -> int:
    """Run a click command with the arguments of this process and return the exit code.

    The code is the command's return value if that is an int, else 0; `wrong_code` if the command line, the
    configuration or the request is wrong, `failed_code` after another MineDraftError, 130 after an interrupt.

    Args:
        name: the program's name in its help.
        report: takes each error message.
        show_usage: takes the error of a wrong command line.
    """
    _turn_off_core_dumps()
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        show_usage(error)
        return wrong_code
    except (ConfigError, InvalidRequest) as error:
        for each in error.errors if isinstance(error, ConfigErrors) else [error]:
            report(str(each))
        return wrong_code
    except MineDraftError as error:
        report(str(error))
        return failed_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_OK


def exit_lines(exits: Mapping[str, str]) -> str:
    """Return the paragraph of `--help` that tells the exit codes."""
    return "\n".join(["\b", "Exit codes:", *(f"  {code:5} {meaning}" for code, meaning in exits.items())])


def exit_or_die_again(code: int) -> NoReturn:
    """End the process with an exit code; with 128 + N, by signal N: shells and supervisors then see which it was."""
    if code > EXIT_OF_SIGNAL:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        logging.shutdown()
        die_of(code - EXIT_OF_SIGNAL)
    sys.exit(code)


def die_of(signum: int) -> NoReturn:
    """End the process immediately, as the signal does where nothing handles it."""
    signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
    os.kill(os.getpid(), signum)
    os._exit(EXIT_OF_SIGNAL + signum)  # the default of this signal is not to end a process


def _turn_off_core_dumps() -> None:
    """Have no crash of this process or its children write their memory, with prompts and secrets in it, to a disk."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def run_logged(command: click.Command, name: str, log_name: str) -> int:
    """Run a click command that logs to stderr, its errors too, and return the exit code.

    Args:
        log_name: the name in each line, after "minedraft.".
    """
    set_up_log(log_name)  # until the command has read its settings
    try:
        return run_command(
            command,
            name,
            report=lambda text: logger.error("%s", text),
            show_usage=lambda error: logger.error("%s", error.format_message()),
        )
    except Exception as error:
        logger.critical("%s: %s", type(error).__name__, error, exc_info=True)
        return EXIT_INTERNAL
