"""`minedraft-worker drafter|verifier`: checks settings, folder and device, then loads the model and serves."""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

from minedraft.errors import EXIT_OK
from minedraft.process.claim import ListenClaim
from minedraft.process.entry import SERVICE_EXITS, exit_lines, run_logged, takes_parent, tells_version
from minedraft.process.logs import set_up_log
from minedraft.process.notify import Notifier
from minedraft.process.parent import exit_with_parent
from minedraft.settings.flags import SettingsCommand, settings_flags, unknown_flags
from minedraft.settings.loading import load_worker_settings
from minedraft.settings.worker import WorkerSettings
from minedraft.types import Role
from minedraft_workers.composition import Plan

_EPILOG = f"""
\b
Examples:
  minedraft-worker verifier --model DIR --listen unix:/run/v.sock --device cpu:1
  minedraft-worker drafter --model DIR --listen unix:/run/d.sock --device cpu:0
  minedraft-worker drafter --model HEAD --target DIR --listen unix:/run/d.sock --device cpu:0
\b
Then start the service with these workers:
  minedraft-launch --target DIR --target-address unix:/run/v.sock --draft-address unix:/run/d.sock

{exit_lines(SERVICE_EXITS)}
"""


@click.command(
    cls=SettingsCommand,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@settings_flags(WorkerSettings)
@click.option("--check", is_flag=True, help="Check settings and model folder without loading weights, then exit.")
@takes_parent
@tells_version
def command(check: bool, parent_pid: int | None, **flags: object) -> int:
    """Run one worker process: the drafter (draft model) or the verifier (target model).

    minedraft-launch starts both workers itself. Start one alone to run it on another host or under its
    own supervisor.
    """
    notifier = Notifier()
    if parent_pid is not None:
        exit_with_parent(parent_pid)
    settings = load_worker_settings(flags, unknown_flags())
    set_up_log(settings.role.value, settings.log_format, settings.log_level)
    plan = Plan.make(settings)
    if check:
        click.echo(plan.check_model())
        return EXIT_OK
    with ListenClaim(plan.settings.listen_address):
        return plan.run(notifier)


def main() -> None:
    """Run the command and exit with 0 (stopped by a signal), 70 (internal error) or 78 (configuration)."""
    # Nothing needs cleaning up while weights load, so Ctrl-C may end the process immediately.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    role = next((argument for argument in sys.argv[1:] if argument in set(Role)), "worker")
    code = run_logged(command, "minedraft-worker", role)
    logging.shutdown()
    # Not sys.exit: the device thread may still be inside a forward, which cannot be interrupted.
    os._exit(code)


if __name__ == "__main__":
    main()
