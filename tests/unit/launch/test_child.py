import asyncio
import os
import sys

import pytest

from minedraft.launch.child import Child


async def run_child(program: str, lines: list[str], shown: str = "") -> Child:
    def on_line(name: str, line: str) -> bool:
        lines.append(line)
        return line == shown

    child = await Child.start("worker", [sys.executable, "-c", program], on_line)
    await child.run()
    return child


@pytest.mark.slow
async def test_a_childs_last_words_and_exit_code_are_told():
    lines: list[str] = []
    child = await run_child("import sys; print('a\\nb', file=sys.stderr); sys.exit(7)", lines)
    assert lines == ["a", "b"]
    assert child.describe_end() == "worker: exit code 7"
    assert child.describe_last_lines() == "; its last lines:\n  a\n  b"


@pytest.mark.slow
async def test_what_a_child_said_is_not_repeated():
    child = await run_child("import sys; print('a\\nb', file=sys.stderr); sys.exit(7)", [], shown="a")
    assert child.describe_end() == "worker: exit code 7"
    assert child.describe_last_lines() == ""


@pytest.mark.slow
async def test_only_the_last_lines_are_kept_and_a_huge_line_harms_nothing():
    lines: list[str] = []
    program = "import sys; print('x' * 300_000, file=sys.stderr); [print(i, file=sys.stderr) for i in range(50)]"
    child = await run_child(program, lines)
    assert list(child.stderr_tail) == [str(i) for i in range(30, 50)]


@pytest.mark.slow
async def test_a_child_and_its_threads_use_only_the_cores_they_get():
    own_cores = os.sched_getaffinity(0)
    core = max(own_cores)
    program = """
import os, sys, threading
seen = [os.sched_getaffinity(0)]
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start()
thread.join()
print(seen, file=sys.stderr)
"""
    lines: list[str] = []

    def on_line(name: str, line: str) -> bool:
        lines.append(line)
        return True

    child = await Child.start("worker", [sys.executable, "-c", program], on_line, {core})
    await child.run()
    assert lines == [str([{core}, {core}])]
    assert os.sched_getaffinity(0) == own_cores


@pytest.mark.slow
async def test_a_child_that_was_killed_is_told_by_its_signal():
    child = await Child.start("worker", [sys.executable, "-c", "import time; time.sleep(60)"], lambda *_: True)
    child.signal(9)
    async with asyncio.timeout(60):
        await child.run()
    assert child.describe_end() == "worker: killed by SIGKILL"
