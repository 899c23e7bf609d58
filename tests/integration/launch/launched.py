"""A launcher as a process of its own, for tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from minedraft import Client, SamplingParams
from minedraft.errors import MineDraftError, Unavailable
from tests.fakes.workers import continuation
from tests.support.processes import is_gone

ROOT = Path(__file__).parents[3]
PROMPT = [5, 6, 7]


@dataclass
class Launched:
    """A running launcher and what belongs to it."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def address(self) -> str:
        return f"unix:{self.folder / 'run' / 'm.sock'}"

    def child(self, word: str) -> psutil.Process:
        """The child whose command line has this word."""
        return next(c for c in psutil.Process(self.process.pid).children() if word in c.cmdline())

    def child_is_new(self, word: str, old: psutil.Process) -> bool:
        """Whether another process than `old` plays this part now."""
        children = psutil.Process(self.process.pid).children()
        return any(word in child.cmdline() and child.pid != old.pid for child in children if not is_gone(child))

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "ready" in line, self.process.stderr and self.process.stderr.read()

    def end(self, signum: int | None = None, within_s: float = 60) -> tuple[int, str]:
        """Signal it, if asked to, and return its exit code and what it said."""
        if signum is not None:
            self.process.send_signal(signum)
        _, said = self.process.communicate(timeout=within_s)
        return self.process.returncode, said


def answers(client: Client) -> bool:
    """Whether the service gives the right answer now."""
    try:
        return list(client.complete(PROMPT, greedy(9)).token_ids) == continuation(PROMPT, 9)
    except Unavailable:
        return False


def client_state(client: Client) -> str:
    try:
        return client.status().state
    except MineDraftError:
        return "unreachable"


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=num_tokens)
