"""How a step is run, ended and told, with steps that fail, hang, print and leave processes behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu import running
from scripts.gpu.running import Outcome, run_limited, shorten

LIMIT_S = 100.0


def run(tmp_path: Path, code: str) -> Outcome:
    log = tmp_path / "log"
    log.write_text("before\n")
    outcome = run_limited([sys.executable, "-c", code], LIMIT_S, dict(os.environ), log)
    assert log.read_text().startswith("before\n")
    return outcome


def lives(pid: int) -> bool:
    """Whether a process runs. One that has ended may wait for somebody to ask for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_step_that_ends_well_is_ok(tmp_path: Path) -> None:
    outcome = run(tmp_path, "print('one'); print('two')")
    assert (outcome.word, outcome.tail, outcome.num_left) == ("ok", ("one", "two"), 0)


def test_a_failure_is_told_by_its_exit_code_and_last_lines(tmp_path: Path) -> None:
    outcome = run(tmp_path, "import sys; print('x'); sys.exit(3)")
    assert (outcome.word, outcome.tail) == ("exit code 3", ("x",))


LEAVING = """
import subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
command = [sys.executable, "-c", child]
children = [subprocess.Popen(command, process_group=group, stdout=subprocess.PIPE) for group in (None, 0)]
for child in children:
    child.stdout.readline()
print(*(child.pid for child in children), flush=True)
"""


@pytest.mark.parametrize(("end", "word"), [("sys.exit(1)", "exit code 1"), ("time.sleep(600)", "timed out")])
def test_what_a_step_leaves_behind_is_ended_however_it_ends(
    end: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of its own group and of others, which do not listen: one may hold the memory of the GPU."""
    log = tmp_path / "log"

    class Impatient(subprocess.Popen[bytes]):
        """Its limit is over when it has printed a line, however busy the machine is."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout != LIMIT_S or "exit" in end:
                return super().wait(timeout)
            while log.read_text().count("\n") < 2:
                pass
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr("scripts.gpu.running.subprocess.Popen", Impatient)
    outcome = run(tmp_path, LEAVING + end)
    assert outcome.word == word
    pids = list(map(int, outcome.tail[-1].split()))
    assert len(pids) == outcome.num_left == 2
    assert not any(map(lives, pids))


def test_the_processes_of_others_are_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            assert run(tmp_path, "pass").num_left == 0
            assert other.poll() is None
        finally:
            other.kill()


def test_a_long_log_keeps_its_beginning_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_MAX_LOG_BYTES", 40)
    log = tmp_path / "log"
    log.write_bytes(b"a" * 30 + b"b" * 500 + b"c" * 30)
    shorten(log)
    assert log.read_bytes() == b"a" * 20 + b"\n... 520 bytes ...\n" + b"c" * 20
    shorten(log)
    assert log.read_bytes().startswith(b"a" * 20)
