"""The timeline of both workers: the bars of a picture, from events or from a trace, and what they add up to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, slots=True)
class Shares:
    """What the devices did in a window, as shares of its length.

    Attributes:
        busy: of each worker, by batch. both: both workers at the same time.
    """

    busy: dict[Role, dict[Batch, float]]
    both: float

    def idle(self, role: Role) -> float:
        return max(1.0 - sum(self.busy[role].values()), 0.0)


def shares(bars: Iterable[Bar], begin_s: float, end_s: float) -> Shares:
    """Return the shares of a window; commands of one worker do not overlap each other."""
    length_s = max(end_s - begin_s, 1e-9)
    busy = {role: dict.fromkeys(Batch, 0.0) for role in Role}
    spans: dict[Role, list[tuple[float, float]]] = {role: [] for role in Role}
    for bar in sorted(bars, key=lambda bar: bar.start_s):
        start_s, stop_s = max(bar.start_s, begin_s), min(bar.end_s, end_s)
        if start_s < stop_s:
            busy[bar.role][bar.batch] += (stop_s - start_s) / length_s
            spans[bar.role].append((start_s, stop_s))
    return Shares(busy, _common_s(spans[Role.VERIFIER], spans[Role.DRAFTER]) / length_s)


def within(bars: Iterable[Bar], begin_s: float, end_s: float) -> list[Bar]:
    """Return the bars that are wholly or partly in a window."""
    return [bar for bar in bars if bar.end_s > begin_s and bar.start_s < end_s]


def middle(bars: Sequence[Bar], num_verifies: int) -> tuple[float, float]:
    """Return a window of about `num_verifies` verify commands in the middle of what matters: while the drafter works
    too, if it ever did.

    Raises:
        ValueError: there are no bars.
    """
    drafts = [bar for bar in bars if bar.role is Role.DRAFTER]
    verifies = [bar for bar in bars if bar.role is Role.VERIFIER]
    if drafts and verifies:
        begin_s, end_s = min(bar.start_s for bar in drafts), max(bar.end_s for bar in drafts)
        verifies = within(verifies, begin_s, end_s) or verifies
    chosen = sorted(verifies or bars, key=lambda bar: bar.start_s)
    first = max((len(chosen) - num_verifies) // 2, 0)
    shown = chosen[first : first + num_verifies]
    return shown[0].start_s, max(bar.end_s for bar in shown)


def _common_s(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """Return the time that two ascending lists of spans have in common."""
    total_s, rest = 0.0, deque(other)
    for start_s, end_s in one:
        while rest and rest[0][1] <= start_s:
            rest.popleft()
        for begun_s, ended_s in rest:
            if begun_s >= end_s:
                break
            total_s += min(end_s, ended_s) - max(start_s, begun_s)
    return total_s


def _span(timing: Timing) -> tuple[float, float]:
    return timing.start_ns / 1e9, (timing.start_ns + timing.busy_ns) / 1e9
