"""Runs a step's process under a limit of time, and ends whatever it leaves behind. Standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_GRACE_S = 3.0
_END_S = 10.0  # a process that holds a GPU's memory takes a while to give it back
_POLL_S = 0.05
_TAIL_LINES = 3
_MAX_LOG_BYTES = 8 << 20  # an assertion on a GPU can print a line for each of its threads


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step's process ended. exit_code: negative for a signal. tail: its last lines.

    num_left: processes of it that lived on, and were ended.
    """

    exit_code: int
    seconds: float
    is_timed_out: bool
    tail: tuple[str, ...]
    num_left: int = 0

    @property
    def word(self) -> str:
        return "timed out" if self.is_timed_out else "ok" if self.exit_code == 0 else f"exit code {self.exit_code}"


def run_limited(argv: list[str], limit_s: float, environment: dict[str, str], log: Path) -> Outcome:
    """Run a program in a session of its own, with its output added to a log; end it after `limit_s` seconds.

    However it ends, no process of its session is left: one could hold the GPU's memory, which the next step needs.
    """
    start_s = time.monotonic()
    is_timed_out = False
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            is_timed_out = True
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        finally:
            num_left = end_session(process)
    seconds = time.monotonic() - start_s
    with log.open("rb") as output:
        output.seek(start)
        tail = output.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    shorten(log)
    return Outcome(process.returncode, seconds, is_timed_out, tuple(tail), num_left)


def end_session(leader: subprocess.Popen[bytes]) -> int:
    """Kill the leader of a session and every process of it, and wait until they are gone. Return how many there were
    beside the leader."""
    others: set[int] = set()
    deadline_s = time.monotonic() + _END_S
    while (living := _living(leader.pid)) or leader.poll() is None:
        others |= living - {leader.pid}
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline_s:
            break
        time.sleep(_POLL_S)
    return len(others)


def _living(session: int) -> set[int]:
    """Return the processes of a session that have not ended."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # "PID (NAME) STATE PARENT GROUP SESSION ...", and a name may have spaces and brackets.
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):  # it has ended
            continue
        if int(of) == session and state not in "ZX":
            found.add(int(folder.name))
    return found


def shorten(log: Path) -> None:
    """Keep of a long log its beginning and its end."""
    size = log.stat().st_size
    if size <= _MAX_LOG_BYTES:
        return
    half = _MAX_LOG_BYTES // 2
    with log.open("rb") as file:
        first = file.read(half)
        file.seek(-half, os.SEEK_END)
        last = file.read()
    log.write_bytes(first + f"\n... {size - 2 * half} bytes ...\n".encode() + last)
