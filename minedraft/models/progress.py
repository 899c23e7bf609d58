"""What a long step tells whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes of a step; total 0 means that only the step's name is known."""

    step: str
    done: int = 0
    total: int = 0
    model: str = ""

    def __str__(self) -> str:
        amount = f", {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB" if self.total else ""
        return f"{self.model}: {self.step}{amount}"


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """The callback of those who do not watch."""


def as_lines(
    report: Callable[[str], None], every_s: float = 2.0, clock: Callable[[], float] = time.monotonic
) -> OnProgress:
    """Return a callback that reports each new step, and how far a long one is every `every_s` seconds."""
    last_step = ""
    last_time = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal last_step, last_time
        step, now = f"{progress.model}: {progress.step}", clock()
        if step != last_step or now - last_time >= every_s:
            last_step, last_time = step, now
            report(str(progress))

    return on_progress
