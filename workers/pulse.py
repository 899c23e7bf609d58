"""Signs of life of a computation: a count that moves while one really proceeds.

A process has one device thread, so the count is the process's. Python counts each layer, and each weight while a model
loads. The native kernels, which compute a whole forward without Python, count in their own memory; it is read only by
those who watch.
"""

from __future__ import annotations

from collections.abc import Callable


class Pulse:
    """Counts beats. Any thread may beat and read."""

    def __init__(self) -> None:
        self._num_beats = 0
        self._sources: dict[str, Callable[[], int]] = {}

    def beat(self) -> None:
        """Count one step of a computation. A beat that races with another one may be lost; the count still moves."""
        self._num_beats += 1

    def add_source(self, name: str, count: Callable[[], int]) -> None:
        """Add what `count` returns, which never falls, to the count of this pulse; it replaces one of the same name."""
        self._sources[name] = count

    @property
    def count(self) -> int:
        """Beats so far. It differs from what it was before if anything was computed in between."""
        return self._num_beats + sum([count() for count in self._sources.values()])


PULSE = Pulse()
