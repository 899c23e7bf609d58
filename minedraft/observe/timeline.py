"""The timeline of both workers: an observer that keeps the bars of the overlap picture."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from minedraft.core import events
from minedraft.messages import Timing
from minedraft.types import Batch, Role


@dataclass(frozen=True, slots=True)
class Bar:
    """One command on one device. Seconds on the scheduler's monotonic clock."""

    role: Role
    batch: Batch
    number: int
    start_s: float
    end_s: float
    is_prefill: bool = False


class Timeline:
    """The last `max_bars` commands of both workers, in the order of their replies."""

    def __init__(self, max_bars: int = 4096) -> None:
        self.bars: deque[Bar] = deque(maxlen=max_bars)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.Drafted():
                self.bars.append(
                    Bar(Role.DRAFTER, event.batch, event.number, *_span(event.timing), is_prefill=event.is_prefill)
                )
            case events.Verified():
                self.bars.append(Bar(Role.VERIFIER, event.batch, event.number, *_span(event.timing)))


def _span(timing: Timing) -> tuple[float, float]:
    return timing.start_ns / 1e9, (timing.start_ns + timing.busy_ns) / 1e9
