"""`minedraft-scheduler`: the scheduler as a program, started by the launcher, by systemd or alone."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from minedraft.address import Address
from minedraft.errors import EXIT_OK, ConfigError, ConfigErrors, InternalError
from minedraft.process.claim import ListenClaim
from minedraft.process.entry import SERVICE_EXITS, exit_lines, run_logged, takes_parent, tells_version
from minedraft.process.logs import set_up_log
from minedraft.process.notify import Notifier
from minedraft.process.parent import exit_with_parent, is_orphaned
from minedraft.process.run_folder.folder import OWN_DOOR
from minedraft.process.serving import run_serving
from minedraft.server.composition import Server
from minedraft.settings.flags import SettingsCommand, config_flag, settings_flags, unknown_flags
from minedraft.settings.loading import load_settings
from minedraft.settings.service import Settings
from minedraft.text.tokenizer import Tokenizer

_ORPHAN_CHECK_S = 0.2

_EPILOG = f"""
\b
Examples:
  minedraft-scheduler --target DIR --target-address unix:/run/v.sock --draft-address unix:/run/d.sock
  minedraft-scheduler --target DIR --target-address unix:/run/v.sock --mode ar
  minedraft-scheduler --config FILE.toml --check       check only, connect to nothing
\b
Start the workers first, or later: the scheduler waits for them (--load-timeout-s).
  minedraft-worker verifier --model DIR --listen unix:/run/v.sock --device cpu:1
  minedraft-worker drafter --model DIR --listen unix:/run/d.sock --device cpu:0
\b
minedraft-launch starts and supervises all three together. With minedraft-scheduler, something else has to restart
what fails: systemd, with the units of scripts/systemd, or a container platform.
SIGTERM or Ctrl-C stops it after its running requests, a second one stops it now.

{exit_lines(SERVICE_EXITS)}
"""


@click.command(
    cls=SettingsCommand,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@settings_flags(Settings)
@config_flag
@click.option("--check", is_flag=True, help="Check settings, target folder and address, then exit.")
@takes_parent
@click.option("--run-folder", type=click.Path(path_type=Path), default=None, hidden=True)
@tells_version
def command(config: Path | None, check: bool, parent_pid: int | None, run_folder: Path | None, **flags: object) -> int:
    """Run the scheduler alone, with workers that already run.

    It needs the target folder, for its tokenizer, and the addresses of the workers.
    """
    notifier = Notifier()
    if parent_pid is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        exit_with_parent(parent_pid, signal.SIGTERM, before_exit=lambda: _remove(run_folder))
    try:
        settings = load_settings(flags, config, unknown_flags())
        set_up_log("scheduler", settings.log_format, settings.log_level)
        check_settings(settings)
        if check:
            _check_machine(settings)
            click.echo("all checks passed")
        else:
            run_serving(_serve(settings, notifier, parent_pid, run_folder))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the kernel sends one for each thread of a dying parent
        _remove_if_orphaned(parent_pid, run_folder)
    return EXIT_OK


def check_settings(settings: Settings) -> None:
    """Check that everything is given that a scheduler needs.

    Raises:
        ConfigErrors: all that is missing: the target, the address of a worker.
    """
    missing = []
    if settings.target is None:
        missing.append(("target", "must be given: the scheduler needs the tokenizer in the target folder"))
    if settings.target_address is None:
        missing.append(("target_address", "must be given: the scheduler connects to a running verifier"))
    if settings.needs_drafter and settings.draft_address is None:
        missing.append(("draft_address", "must be given, or mode ar: the scheduler connects to a running drafter"))
    if missing:
        raise ConfigErrors([ConfigError(field, None, limit) for field, limit in missing])


def _check_machine(settings: Settings) -> None:
    assert settings.target is not None, "checked before"
    Tokenizer.load(settings.target)
    ListenClaim(settings.listen_address).release()


def main() -> NoReturn:
    """Run the command and exit with 0 (stopped by a signal), 70 (internal error) or 78 (configuration)."""
    sys.exit(run_logged(command, "minedraft-scheduler", "scheduler"))


async def _serve(settings: Settings, notifier: Notifier, parent_pid: int | None, run_folder: Path | None) -> None:
    own_door = None if run_folder is None else Address(run_folder / OWN_DOOR)
    server = Server(settings, notifier=notifier, own_door=own_door, run_folder=run_folder)
    loop = asyncio.get_running_loop()

    def on_term() -> None:
        server.on_signal()
        # It may be the parent-death signal, which comes an instant before the parent's state says so.
        end_if_orphaned()
        loop.call_later(_ORPHAN_CHECK_S, end_if_orphaned)

    def end_if_orphaned() -> None:
        if parent_pid is not None and is_orphaned(parent_pid):
            server.end_now()  # the launcher was killed, and the workers with it: no request can finish

    loop.add_signal_handler(signal.SIGTERM, on_term)
    loop.add_signal_handler(signal.SIGINT, server.on_signal)
    try:
        await server.run()
    except TimeoutError:
        limit = f"load_timeout_s {settings.load_timeout_s:g}"
        raise InternalError(f"the workers were not ready within {limit}") from None
    finally:
        _remove_if_orphaned(parent_pid, run_folder)  # now: the signal handlers end with the event loop


def _remove_if_orphaned(parent_pid: int | None, folder: Path | None) -> None:
    """Remove the folder for a launcher that was killed; otherwise it is the launcher's, for the next scheduler."""
    if parent_pid is not None and is_orphaned(parent_pid):
        _remove(folder)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
