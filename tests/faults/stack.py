"""A service whose workers have gates: real processes, tiny real models, and what they say and hold."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from minedraft.process.notify import READY_LINE
from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment
from minedraft.types import Role
from tests.faults.gate import Gate
from tests.stress.models import Pair
from tests.support.processes import until

READY_S = 120.0
_DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a service holds: descriptors of the scheduler, names in the run folder and in /dev/shm."""

    num_files: int
    run_files: frozenset[str]
    shm_files: frozenset[str]


class Stack:
    """A running service.

    Attributes:
        address: where clients connect. gate: of its workers.
    """

    def __init__(self, process: WatchedProcess, folder: Path, gate: Gate) -> None:
        self.address = f"unix:{folder / 'run' / 'm.sock'}"
        self.gate = gate
        self.process = process
        self._folder = folder
        self._lines: list[str] = []
        self._has_line = threading.Condition()

    def take(self, line: str) -> None:
        with self._has_line:
            self._lines.append(line)
            self._has_line.notify_all()

    def mark(self) -> int:
        """Return the present end of the log, for `said`."""
        return len(self._lines)

    def said(self, since: int = 0) -> list[str]:
        """Return the lines of the log since a mark."""
        return self._lines[since:]

    def child(self, word: str) -> psutil.Process:
        """Return the child whose command line has this word: a role, or "minedraft.server".

        Raises:
            LookupError: there is none at present.
        """
        for child in psutil.Process(self.process.pid).children():
            try:
                if word in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return child
            except psutil.NoSuchProcess:
                continue
        raise LookupError(f"no child {word}: {self.said()[-10:]}")

    def worker(self, role: Role) -> psutil.Process:
        return self.child(role.value)

    @property
    def scheduler(self) -> psutil.Process:
        return self.child("minedraft.server")

    @property
    def num_children(self) -> int:
        return len(psutil.Process(self.process.pid).children(recursive=True))

    def held(self) -> Held:
        run = self._folder / "run"
        return Held(
            self.scheduler.num_fds(),
            frozenset(path.name for path in run.rglob("*") if not path.name.startswith("minedraft-run-")),
            frozenset(name for name in os.listdir("/dev/shm") if "minedraft" in name),
        )

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + READY_S
        with self._has_line:
            while not any(line.startswith(READY_LINE) for line in self._lines):
                assert self.process.exit_code is None, self._lines
                assert self._has_line.wait(deadline_s - time.monotonic()), self._lines

    @property
    def run_folder(self) -> Path:
        return self._folder / "run"


@contextmanager
def running(pair: Pair, folder: Path, flags: Sequence[str] = ()) -> Iterator[Stack]:
    """Run a service with gated workers while the block does; then check that it leaves nothing."""
    for name in ("run", "gate"):
        (folder / name).mkdir(mode=0o700)
    worker = shlex.join(["tests.faults.faulty_worker", str(folder / "gate")])
    command = child_command(
        "tests.fakes.launcher", "--worker", worker, "--listen", f"unix:{folder / 'run' / 'm.sock'}",
        "--target", str(pair.target), "--draft", str(pair.draft), "--dtype", "float32", "--mode", "minedraft",
        "--draft-len", "3", "--keep-drafting", "--num-blocks", "400", "--drain-timeout-s", str(_DRAIN_S), *flags,
    )  # fmt: skip
    lines: list[Stack] = []
    process = WatchedProcess(
        command,
        lambda line: lines[0].take(line),
        child_environment(XDG_RUNTIME_DIR=str(folder / "run")),
    )
    stack = Stack(process, folder, Gate(folder / "gate"))
    lines.append(stack)
    children: list[psutil.Process] = []
    with process:
        try:
            stack.wait_ready()
            yield stack
        finally:
            if process.exit_code is None:
                children = psutil.Process(process.pid).children(recursive=True)
            process.stop(_DRAIN_S + 20, 5)
    _, alive = psutil.wait_procs(children, 30)
    assert not alive, f"still there 30 s after the end of the service: {alive}"
    until(lambda: not list((folder / "run").iterdir()), 30, f"empty {list((folder / 'run').iterdir())}")
