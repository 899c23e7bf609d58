"""`python -m minedraft.process.with_parent PID[:FOLDER] MODULE ARGUMENTS`: runs a module as `python -m` does.

The process is killed when its parent, process PID, ends: otherwise it would go on without the lock that the
parent holds for it. It is so from the first moment, before the module's imports, which take seconds. With a folder, the
process first removes that; the module can arrange this anew, for when it has more to do at its end.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from minedraft.errors import EXIT_INTERNAL
from minedraft.process.parent import exit_with_parent, is_orphaned


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command line of a child that runs `module`. The thread that starts it must also wait for it."""
    # -P: a file of the current folder must not be imported as a module.
    return bind_to_parent([sys.executable, "-P", "-m", module, *arguments])


def bind_to_parent(argv: Sequence[str], removes: Path | None = None) -> list[str]:
    """Return the command line `python ... -m MODULE ...` so that its process ends with this one, and then first removes
    a folder."""
    place = list(argv).index("-m") + 1
    bond = str(os.getpid()) if removes is None else f"{os.getpid()}:{removes}"
    return [*argv[:place], "minedraft.process.with_parent", bond, *argv[place:]]


def child_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with `variables`, and a PYTHONPATH that leads a child to this package."""
    environment = os.environ | variables
    places = (str(Path(__file__).parents[2]), environment.get("PYTHONPATH", ""))
    return environment | {"PYTHONPATH": os.pathsep.join(place for place in places if place)}


def _bind(bond: str) -> None:
    """Arrange the end of this process; see above."""
    pid, _, folder = bond.partition(":")
    parent_pid = int(pid)
    if not folder:
        exit_with_parent(parent_pid)
        return

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def end(signum: int, frame: object) -> None:
        if is_orphaned(parent_pid):
            remove()
        os._exit(EXIT_INTERNAL)

    signal.signal(signal.SIGTERM, end)
    exit_with_parent(parent_pid, signal.SIGTERM, remove)


if __name__ == "__main__":
    _bind(sys.argv[1])
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
