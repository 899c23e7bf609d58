"""`python -m minedraft.process.with_parent PID MODULE ARGUMENTS`: runs a module as `python -m` does.

The process is killed when its parent, process PID, ends: otherwise it would go on without the lock that the
parent holds for it.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from minedraft.process.parent import exit_with_parent


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command line of a child that runs `module`. The thread that starts it must also wait for it."""
    # -P: a file of the current folder must not be imported as a module.
    return [sys.executable, "-P", "-m", "minedraft.process.with_parent", str(os.getpid()), module, *arguments]


def child_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with `variables`, and a PYTHONPATH that leads a child to this package."""
    environment = os.environ | variables
    places = (str(Path(__file__).parents[2]), environment.get("PYTHONPATH", ""))
    return environment | {"PYTHONPATH": os.pathsep.join(place for place in places if place)}


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
