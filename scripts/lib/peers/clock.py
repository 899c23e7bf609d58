"""How long a run still takes, from how long its steps so far took, and the line that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console

from minedraft.cli.console import say

Expected: TypeAlias = tuple[str, float]
"""The kind of a step, whose steps are slower or faster than expected together, and the seconds first expected."""

OnStep: TypeAlias = Callable[[str, float], None]
"""Called with what runs now and about how many seconds are left."""


class Clock:
    """Estimates the time left, from how long the steps so far took compared with what was expected."""

    def __init__(self) -> None:
        self._expected: dict[str, float] = {}
        self._taken: dict[str, float] = {}

    def record(self, step: Expected, seconds: float) -> None:
        """Take in a step that took so many seconds."""
        kind, expected_s = step
        self._expected[kind] = self._expected.get(kind, 0.0) + expected_s
        self._taken[kind] = self._taken.get(kind, 0.0) + seconds

    def left_s(self, steps: Iterable[Expected]) -> float:
        """Return about how many seconds these steps take."""
        overall = sum(self._taken.values()) / sum(self._expected.values()) if self._expected else 1.0
        return sum(
            expected_s * (self._taken[kind] / self._expected[kind] if kind in self._expected else overall)
            for kind, expected_s in steps
        )


@contextmanager
def showing_steps() -> Iterator[OnStep]:
    """Show the present step and the time left: on a terminal in one line that changes, elsewhere a line each."""
    console = Console(stderr=True)
    with console.status("starting") as status:

        def on_step(label: str, left_s: float) -> None:
            line = f"{label}; about {in_words(left_s)} left"
            status.update(line)
            if not console.is_terminal:
                say(line)

        yield on_step


def in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
