"""A watched child is read to its end, and stopped whatever it or we do meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from concurrent.futures import Future

import pytest

from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment

pytestmark = pytest.mark.slow

STUBBORN = """
import signal
signal.signal(signal.SIGTERM, lambda *_: print("not yet", flush=True))
print("here", flush=True)
while True:
    signal.pause()
"""
LONG_S = 20.0


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


class Lines:
    """Takes lines in whatever thread, and says when one has come."""

    def __init__(self) -> None:
        self.have_come: dict[str, threading.Event] = {"here": threading.Event(), "not yet": threading.Event()}

    def __call__(self, line: str) -> None:
        self.have_come[line].set()

    def wait(self, line: str) -> None:
        assert self.have_come[line].wait(LONG_S)


def test_output_and_errors_are_lines_and_the_end_comes_after_the_last():
    lines: list[str] = []
    program = "import sys; print('one', flush=True); print('two', file=sys.stderr, flush=True); print('th\\nree')"
    with WatchedProcess(python(f"{program}; sys.exit(3)"), lines.append) as process:
        assert process.ended.result(LONG_S) == 3
        assert lines == list(process.tail) == ["one", "two", "th", "ree"]
    assert process.exit_code == 3


def test_leaving_the_block_ends_it():
    lines = Lines()
    with WatchedProcess(python("print('here', flush=True); import signal; signal.pause()"), lines) as process:
        lines.wait("here")
        assert process.exit_code is None
    assert process.exit_code == -signal.SIGTERM


def test_one_that_does_not_stop_is_killed():
    lines = Lines()
    process = WatchedProcess(python(STUBBORN), lines)
    process.start()
    lines.wait("here")
    process.stop(0.0, 0.0)
    assert process.exit_code == -signal.SIGKILL


def test_an_interrupt_while_it_stops_goes_on_to_the_next_signal_and_is_raised_at_the_end():
    def on_line(line: str) -> None:
        lines(line)
        if line == "not yet":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    lines = Lines()
    process = WatchedProcess(python(STUBBORN), on_line)
    process.start()
    lines.wait("here")
    with pytest.raises(KeyboardInterrupt):
        process.stop(LONG_S)
    assert process.exit_code == -signal.SIGKILL


async def test_so_does_a_cancellation():
    lines = Lines()
    process = WatchedProcess(python(STUBBORN), lines)
    process.start()
    await asyncio.to_thread(lines.wait, "here")
    stopping = asyncio.create_task(process.stop_async(LONG_S))
    await asyncio.to_thread(lines.wait, "not yet")
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert process.exit_code == -signal.SIGKILL


def test_it_outlives_the_thread_that_started_it_and_ends_with_the_process():
    """The kernel ends a child bound to its parent with the thread that started it."""
    started: Future[WatchedProcess] = Future()
    lines = Lines()

    def start() -> None:
        process = WatchedProcess(child_command("tests.support.waiting"), lines, child_environment())
        process.start()
        started.set_result(process)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    process = started.result()
    lines.wait("here")
    assert process.exit_code is None
    process.stop(LONG_S)
    assert process.exit_code == -signal.SIGTERM


def test_a_program_that_is_not_there_is_an_error_of_the_start():
    process = WatchedProcess(["/no/such/program"])
    with pytest.raises(FileNotFoundError):
        process.start()
    process.stop()


def test_one_that_was_never_started_needs_no_stop():
    WatchedProcess(["/no/such/program"]).stop(LONG_S)


def test_a_reader_that_fails_does_not_block_the_child(caplog):
    def fail(line: str) -> None:
        raise ValueError(line)

    with WatchedProcess(python("print('x' * 100_000); print('end')"), fail) as process:
        assert process.ended.result(LONG_S) == 0
    assert process.tail[-1] == "end"
    assert "ValueError: end" in caplog.text
