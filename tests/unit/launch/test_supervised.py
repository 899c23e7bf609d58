"""One process in all its incarnations, with real processes that take no time to start."""

import asyncio
import signal
import sys

import pytest

from minedraft.errors import EXIT_CONFIG
from minedraft.launch.restart import RestartRules
from minedraft.launch.supervised import Supervised

pytestmark = pytest.mark.slow

QUICK = RestartRules(first_backoff_s=0.01, budget=2)
READY = """
import os, socket, sys, time
def tell(text):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
tell("READY=1\\nSTATUS=here")
"""


def supervised(folder, program: str, said: list[str], **options) -> Supervised:
    return Supervised(
        "worker", [sys.executable, "-S", "-c", program], folder, report=said.append, on_line=lambda *_: False, **options
    )


async def test_it_is_restarted_until_the_budget_is_spent_with_a_line_for_each_end(tmp_path):
    said: list[str] = []
    process = supervised(tmp_path, READY + "sys.exit('no more')", said, rules=QUICK, meanwhile="going on without it")
    gave_up = await asyncio.wait_for(process.run(), 60)
    words = "; going on without it; its last lines:\n  no more"
    assert gave_up is not None
    assert said == [
        f"worker: exit code 1; restart 1 in 0.01 s{words}",
        "worker: ready again",
        f"worker: exit code 1; restart 2 in 0.02 s{words}",
        "worker: ready again",
        f"worker: exit code 1; it has ended 3 times within 300 s, the limit is 2 restarts{words}",
    ]
    assert (process.num_restarts, process.exit_code) == (2, 1)
    assert not list(tmp_path.iterdir())


async def test_a_wrong_configuration_ends_it_with_its_words(tmp_path):
    said: list[str] = []
    process = supervised(tmp_path, "import sys; print('no such folder', file=sys.stderr); sys.exit(78)", said)
    assert await asyncio.wait_for(process.run(), 60) is not None
    assert said == ["worker: exit code 78; its last lines:\n  no such folder"]
    assert process.exit_code == EXIT_CONFIG


async def test_silence_and_not_slowness_gets_it_killed(tmp_path):
    program = READY + "for _ in range(20): time.sleep(0.05); tell('WATCHDOG=1')\ntime.sleep(600)"
    said: list[str] = []
    process = supervised(tmp_path, program, said, hang_timeout_s=0.8, rules=RestartRules(budget=0))
    assert await asyncio.wait_for(process.run(), 60) is not None
    assert said == ["worker: killed: no progress for 1 s"]
    assert process.exit_code == -signal.SIGKILL


async def test_a_process_of_the_child_that_outlives_it_delays_nothing(tmp_path):
    said: list[str] = []
    program = "import subprocess, sys; subprocess.Popen(['sleep', '20']); sys.exit(78)"
    process = supervised(tmp_path, program, said)
    await asyncio.wait_for(process.run(), 15)
    assert said == ["worker: exit code 78"]


async def test_it_does_not_come_back_when_it_is_to_end(tmp_path):
    changed = asyncio.Event()
    process = supervised(tmp_path, READY + "time.sleep(600)", [], on_change=changed.set)
    running = asyncio.create_task(process.run())
    await asyncio.wait_for(changed.wait(), 60)
    assert (process.is_ready, process.status) == (True, "here")
    process.let_end(signal.SIGTERM)
    assert await asyncio.wait_for(running, 60) is None
    assert process.exit_code == -signal.SIGTERM


async def test_what_cannot_be_started_counts_as_ended(tmp_path):
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        process.let_end()

    process = Supervised("worker", ["/no/such/program"], tmp_path, report=report, on_line=lambda *_: False)
    assert await asyncio.wait_for(process.run(), 60) is None
    assert said == ["worker: cannot be started: No such file or directory"]
