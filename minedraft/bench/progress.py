"""How far a benchmark is, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Eta:
    """Estimates the time left. A run is taken to last as long as the last one of its row, and, while there was none,
    as long as the mean of the others."""

    def __init__(self, order: Sequence[Hashable]) -> None:
        self._left = list(order)
        self._took_s: dict[Hashable, float] = {}

    def note(self, row: Hashable, took_s: float) -> None:
        """Take the duration of a run that has ended."""
        self._left.remove(row)
        self._took_s[row] = took_s

    def left_s(self) -> float | None:
        """Return the seconds until the last run has ended; None before the first one has."""
        if not self._took_s:
            return None
        mean_s = fmean(self._took_s.values())
        return sum(self._took_s.get(row, mean_s) for row in self._left)


class RunProgress:
    """Shows the run in progress, how many there are, and the time left: a bar on a terminal, else a line a run.

    Args:
        order: the row of each run.
        clock: monotonic seconds.
    """

    def __init__(
        self, console: Console, order: Sequence[Hashable], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._eta = Eta(order)
        self._num_runs, self._num_begun = len(order), 0
        self._clock = clock
        self._present: tuple[Hashable, float] | None = None
        self._console = console
        columns = (BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting", total=self._num_runs)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, row: Hashable, label: str) -> None:
        """Show that the next run has begun, which ends the one before."""
        now_s = self._clock()
        if self._present is not None:
            self._eta.note(self._present[0], now_s - self._present[1])
        self._present = row, now_s
        self._num_begun += 1
        left_s = self._eta.left_s()
        text = f"run {self._num_begun} of {self._num_runs}: {label}"
        if left_s is not None:
            text += f", {format_left(left_s)} left"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=self._num_begun - 1, description=text)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def format_left(seconds: float) -> str:
    """Return a duration as people say it: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
