"""The cores that a worker computes on, changed between two commands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from minedraft.device import format_cores
from minedraft.errors import InternalError, InvalidRequest, MemoryExhausted
from minedraft_workers.device import pin_threads

logger = logging.getLogger("minedraft.worker")


class WorkerCores:
    """The cores of one worker process. Call its methods in the device thread.

    Args:
        own: cores that it begins with, and returns to.
        most: cores that it may be given, with its own; empty for a worker that keeps its own.
        resize: sets the number of threads; a smaller number never fails. None for a worker that keeps its own.
    """

    def __init__(
        self, own: Sequence[int] = (), most: Sequence[int] = (), resize: Callable[[int], None] | None = None
    ) -> None:
        self._own = tuple(own)
        self._most = frozenset(most)
        self._resize = resize
        self._present = self._own

    def change(self, cores: Sequence[int]) -> None:
        """Compute on these cores, with a thread for each, from the next command on.

        Raises:
            InvalidRequest: the worker may not have one of them, or there is none.
            MemoryExhausted: the system gives no more threads; nothing has changed.
        """
        wanted = tuple(sorted(set(cores)))
        if not wanted or not self._most.issuperset(wanted):
            limit = f"one or more of {format_cores(self._most)}" if self._most else "this worker keeps its own"
            raise InvalidRequest("cores", format_cores(wanted), limit)
        before = self._present
        if wanted == before:
            return
        try:
            self._apply(wanted)
        except InternalError as error:
            self._apply(before)
            raise MemoryExhausted(f"no threads for cores {format_cores(wanted)}: {error}") from error
        self._present = wanted

    def reset(self) -> None:
        """Return to the worker's own cores: another scheduler takes over."""
        if self._present != self._own:
            self.change(self._own)

    def _apply(self, cores: tuple[int, ...]) -> None:
        pin_threads(cores)  # first: a pool gives each thread a core of those that its caller may use
        if self._resize is not None:
            self._resize(len(cores))
