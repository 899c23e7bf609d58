"""What each program does at its start and at its end: its log, and what its exit code says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import click

from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, EXIT_OK, ConfigError, ConfigErrors, MineDraftError

EXIT_INTERRUPTED = 130

logger = logging.getLogger(__name__)

takes_parent = click.option(
    "--exit-with-parent", "parent_pid", type=int, metavar="PID", help="End when process PID, the parent, ends."
)


def run_command(
    command: click.Command,
    name: str,
    *,
    report: Callable[[str], None],
    show_usage: Callable[[click.ClickException], None],
    failed_code: int = EXIT_INTERNAL,
) -> int:
    """Run a click command with the arguments of this process, and return the exit code.

    It is what the command returns, 0 where that is no number; 78 where the command line or the
    configuration is wrong, `failed_code` after another MineDraftError, 130 after an interrupt.

    Args:
        name: of the program, for its help.
        report: takes what went wrong, a line each.
        show_usage: takes what is wrong with the command line.
    """
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        show_usage(error)
        return EXIT_CONFIG
    except ConfigError as error:
        for each in error.errors if isinstance(error, ConfigErrors) else [error]:
            report(str(each))
        return EXIT_CONFIG
    except MineDraftError as error:
        report(str(error))
        return failed_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_OK


def run_logged(command: click.Command, name: str, log_name: str) -> int:
    """Run a click command that logs to stderr, whose end is a line of its log too; return the exit code.

    Args:
        log_name: stands in each line, after "minedraft.".
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s.%(msecs)03d %(levelname)s minedraft.{log_name} %(message)s",
        datefmt="%H:%M:%S",
    )
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
