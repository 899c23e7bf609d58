"""`minedraft-launch` as a process, with workers that have no model: `python -m tests.fakes.launcher FLAGS`.

`--worker "MODULE ARGUMENT ..."` names other workers; role and flags follow their arguments.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from minedraft.cli.launch import run_service
from minedraft.process.entry import exit_or_die_again
from minedraft.settings.flags import settings_flags
from minedraft.settings.loading import load_settings
from minedraft.settings.service import Settings


@click.command()
@settings_flags(Settings)
@click.option("--worker", default="tests.fakes.fake_worker")
def main(worker: str, **flags: Any) -> None:
    settings = load_settings(flags)
    command = (sys.executable, "-m", *shlex.split(worker))
    exit_or_die_again(run_service(settings, worker_command=command))


if __name__ == "__main__":
    main()
