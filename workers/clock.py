"""The time that a worker's forwards take, on the clock of the device that computes them.

A forward on a GPU returns as soon as its kernels are queued, so the host's clock would measure the queueing.
There, events in the stream mark the start and the end of each forward, and a command is over when the device has
done all of it: otherwise a command that copies nothing to the host (a prompt chunk) would leave its work to the
next command's account. What is measured includes the gaps in which the device waits for the host's next kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch


class ForwardClock(Protocol):
    """Measures the forwards of one command after another. Call it in the device thread."""

    def start(self) -> None:
        """Begin a command; what a refused one has left is forgotten."""
        ...

    def forward(self) -> AbstractContextManager[None]:
        """Measure a forward of the command; it is not counted if it raises."""
        ...

    def finish(self) -> int:
        """Wait until the device has done the command. Return the nanoseconds of its forwards."""
        ...


class HostClock:
    """Measures what is done when it returns, as on the CPU."""

    def __init__(self) -> None:
        self._total_ns = 0

    def start(self) -> None:
        self._total_ns = 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        start_ns = time.perf_counter_ns()
        yield
        self._total_ns += time.perf_counter_ns() - start_ns

    def finish(self) -> int:
        return self._total_ns


class EventClock:
    """Measures by events in the current stream of the current device.

    Args:
        make_event: returns an event that can be timed, like `torch.cuda.Event`.
    """

    def __init__(self, make_event: Callable[[], Any]) -> None:
        self._make_event = make_event
        self._end = make_event()
        self._pairs: list[tuple[Any, Any]] = []  # events of all forwards of the longest command, used again
        self._num_used = 0

    def start(self) -> None:
        self._num_used = 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        if self._num_used == len(self._pairs):
            self._pairs.append((self._make_event(), self._make_event()))
        first, last = self._pairs[self._num_used]
        first.record()
        yield
        last.record()
        self._num_used += 1

    def finish(self) -> int:
        self._end.record()
        self._end.synchronize()  # the stream is in order, so all events before it have passed too
        return sum(round(first.elapsed_time(last) * 1e6) for first, last in self._pairs[: self._num_used])


def clock_for(device: torch.device) -> ForwardClock:
    """Return the clock of a device."""
    if device.type == "cuda":
        return EventClock(lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
    return HostClock()
