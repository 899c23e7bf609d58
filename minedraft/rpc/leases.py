"""When a worker's tensor lease is free: as soon as no value of the scheduler refers to it.

A reference lives in the values that hold it (a proposal, a command until its answer), wherever they go. So a lease
outlives every command that uses it, whichever way a round ends, and nothing else has to keep account of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial

from minedraft.messages import TensorRef


class LeaseBook:
    """The leases of one worker in one epoch."""

    def __init__(self) -> None:
        self._watched: dict[int, weakref.ref[TensorRef]] = {}
        self._freed: list[int] = []

    def watch(self, reference: TensorRef) -> None:
        """Free the lease when the last value that holds this object is gone."""
        generation = reference.generation
        self._watched[generation] = weakref.ref(reference, partial(self._on_gone, generation))

    def free(self, generations: Iterable[int]) -> None:
        """Free leases that no value refers to: their reply is dropped."""
        self._freed.extend(generations)

    def take(self, limit: int) -> list[int]:
        """Return the generations of at most `limit` leases that became free since the last call."""
        taken, self._freed = self._freed[:limit], self._freed[limit:]
        return taken

    def _on_gone(self, generation: int, reference: weakref.ref[TensorRef]) -> None:
        del self._watched[generation]
        self._freed.append(generation)
