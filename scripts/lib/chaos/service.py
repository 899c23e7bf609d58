"""The service under test: started here or found, its processes by their roles, and what they hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from minedraft.address import Address
from minedraft.errors import ConfigError

LAUNCHER = "launcher"
_SHM = "/dev/shm"  # noqa: S108 - it is only listed
ROLES = {"drafter": "drafter", "verifier": "verifier", "scheduler": "minedraft.server"}
"""A process's role, and a word of its command line."""


def find_child(parent_pid: int, word: str) -> psutil.Process | None:
    """Return the living child whose command line has this word."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(parent_pid).children():
            with suppress(psutil.NoSuchProcess):
                if word in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return child
    return None


def find_launcher(address: str) -> int:
    """Return the process id of the launcher of the service that listens at a socket.

    Raises:
        ConfigError: there is none, or the address is no socket of this host.
    """
    path = Address.parse(address, "server").path
    if path is None:
        raise ConfigError("server", address, "must be unix:PATH: faults are made on this host")
    try:
        scheduler = int(path.with_name(path.name + ".lock").read_text())
        return psutil.Process(scheduler).ppid()
    except (OSError, ValueError, psutil.Error) as error:
        raise ConfigError("server", address, f"no service of minedraft-launch listens there: {error}") from None


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process holds at a moment, in seconds of the monotonic clock; memory in MB."""

    at_s: float
    pid: int
    rss_mb: float
    num_fds: int
    num_threads: int


class Processes:
    """The processes of a service, found anew each time: they are replaced while it runs."""

    def __init__(self, launcher_pid: int) -> None:
        self.launcher_pid = launcher_pid

    def find(self, role: str) -> psutil.Process | None:
        """Return the process of a role; None if it is not there at present."""
        return find_child(self.launcher_pid, ROLES[role])

    def is_alive(self) -> bool:
        """Return whether the service is there: its launcher has not ended."""
        try:
            return psutil.Process(self.launcher_pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def all(self) -> Iterator[tuple[str, psutil.Process]]:
        with suppress(psutil.NoSuchProcess):
            yield LAUNCHER, psutil.Process(self.launcher_pid)
        for role in ROLES:
            if (process := self.find(role)) is not None:
                yield role, process

    def count(self) -> int:
        """Return the number of children, of any kind."""
        return len(psutil.Process(self.launcher_pid).children(recursive=True))

    def footprints(self) -> dict[str, Footprint]:
        """Return what each process holds now, by role."""
        found = {}
        for role, process in self.all():
            with suppress(psutil.Error), process.oneshot():
                rss = process.memory_info().rss / 1e6
                found[role] = Footprint(time.monotonic(), process.pid, rss, process.num_fds(), process.num_threads())
        return found


def shared_memory() -> set[str]:
    """Return the names of ours in /dev/shm."""
    return {name for name in os.listdir(_SHM) if "minedraft" in name}


def files_in(folder: Path | None) -> set[str]:
    """Return the names of all files below a folder, without those of the run folder, which is another one each time."""
    if folder is None:
        return set()
    return {path.name for path in folder.rglob("*") if not path.name.startswith("minedraft-run-")}
