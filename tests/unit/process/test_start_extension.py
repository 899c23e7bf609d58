import subprocess
import sys
import threading
import time

import pytest

from minedraft.process import start_extension
from minedraft.process.start_extension import StartExtension, cpu_time_s


class Heard:
    """A notifier that knows what it was told."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.extended = threading.Semaphore(0)

    def status(self, text: str) -> None:
        self.states.append(text)

    def extend_timeout(self, seconds: float) -> None:
        self.extended.release()


class Used:
    """The CPU time that a process seems to have used: it grows for two looks and then stands still."""

    def __init__(self) -> None:
        self.looked = threading.Semaphore(0)
        self._times = [1.0, 2.0]

    def __call__(self) -> float:
        self.looked.release()
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def test_a_start_is_extended_while_it_uses_the_processor_and_no_longer(monkeypatch):
    heard, used = Heard(), Used()
    monkeypatch.setattr(start_extension, "cpu_time_s", used)
    monkeypatch.setattr(start_extension, "_PERIOD_S", 0.005)
    with StartExtension(heard, "loading"):
        for _ in range(3):  # at the start, and for each of two moves
            assert heard.extended.acquire(timeout=10)
        for _ in range(10):
            assert used.looked.acquire(timeout=10)
        assert not heard.extended.acquire(blocking=False)
    assert heard.states == ["loading"]


@pytest.mark.slow
def test_what_a_child_computes_counts():
    program = "print('begun', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            while cpu_time_s() - time.process_time() < 0.05:  # without the child, never more than 0
                pass
        finally:
            child.kill()
