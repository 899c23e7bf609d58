"""Other processes in tests: waits for them, tells how long that took, looks at their files, finds ports for them."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

_WAITED = Path("/proc/pressure/cpu")
_PORTS = iter(random.Random(os.getpid()).sample(range(20_000, 32_000), 12_000))


def until(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Poll a condition of other processes until it holds; fail after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    """Return whether the process has ended; it may still wait for the machine's init to reap it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    """Return a port of this host for another process to listen on. The kernel itself gives these to nobody, and test
    processes side by side try them in orders of their own."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LookupError("no free port")


def memory_files(pid: int | None = None) -> list[Path]:
    """Return the paths of open descriptors of the product's memory files; of this process without a pid."""
    found = []
    for path in sorted(Path(f"/proc/{pid or os.getpid()}/fd").iterdir()):
        with suppress(FileNotFoundError):  # that of the listing itself
            if "minedraft-tensors" in os.readlink(path):
                found.append(path)
    return found


def num_files(pid: int) -> int:
    """Return the number of descriptors that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def shared_names() -> list[str]:
    """Return the names in /dev/shm that are the product's or torch's; those of other programs come and go."""
    return sorted(name for name in os.listdir("/dev/shm") if name.startswith(("minedraft", "torch")))


def overwrite(path: Path) -> None:
    """Fill a memory file with zeros: every lease in it is lost."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


class Elapsed:
    """Time from the making of this object on, without the time in which some process of the machine waited for a
    core: on a quiet machine all of it, on a crowded one next to nothing, where a promise in seconds means nothing."""

    def __init__(self) -> None:
        self._began_s, self._waited_s = time.monotonic(), _waited_s()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s - (_waited_s() - self._waited_s)


def _waited_s() -> float:
    """Return the pressure stall time of the processors (Linux 4.20's `some`), 0 where the kernel does not tell."""
    try:
        found = re.match(r"some .*total=(\d+)", _WAITED.read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1e6 if found else 0.0
