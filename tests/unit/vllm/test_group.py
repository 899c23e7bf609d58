"""The servers of the tests with vLLM end with the tests, also with tests that are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.processes import is_gone, until

ROOT = Path(__file__).parents[3]
# Tests that start a server, whose engine is another process; the engine tells its id and waits for its end.
TESTS = """
import subprocess, sys
from tests.vllm.group import group_command
engine = "import os; print(os.getpid(), flush=True); os.read(0, 1)"
server = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
subprocess.run(group_command(sys.executable, "-c", server, engine), start_new_session=True)
"""


def test_a_server_and_its_engine_end_with_tests_that_are_killed() -> None:
    command = [sys.executable, "-c", TESTS]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        engine = psutil.Process(int(tests.stdout.readline()))
        family = psutil.Process(tests.pid).children(recursive=True)
        assert engine in family
        assert len(family) == 3
        tests.kill()
        until(lambda: all(is_gone(process) for process in family), 60, "the server and its engine have ended")
