"""What the two devices do at the same time: an observer."""

from __future__ import annotations

from collections import deque

from minedraft.core import events
from minedraft.messages import Timing
from minedraft.types import Role

_NUM_KEPT = 8  # commands that can overlap one of the other worker, and are told of before or after it

_Span = tuple[int, int]  # from and to, in nanoseconds on the scheduler's clock


class DeviceUse:
    """Seconds since the start, up to the last command that has ended.

    Attributes:
        busy_s: of each role's device.
        both_busy_s: in which both devices worked.
        exposed_drafting_s: in which the verifier was idle while the drafter drafted: what overlap is to hide.
    """

    def __init__(self) -> None:
        self.busy_s = dict.fromkeys(Role, 0.0)
        self.both_busy_s = 0.0
        self.exposed_drafting_s = 0.0
        # Either worker's may be told of first, so both are kept for a while.
        self._busy: dict[Role, deque[_Span]] = {role: deque(maxlen=_NUM_KEPT) for role in Role}
        self._drafts: deque[_Span] = deque(maxlen=_NUM_KEPT)
        self._idle: deque[_Span] = deque(maxlen=_NUM_KEPT)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.Drafted():
                span = self._use(Role.DRAFTER, Role.VERIFIER, event.timing)
                if not event.is_prefill:
                    self._drafts.append(span)
                    self.exposed_drafting_s += _common_s(span, self._idle)
            case events.Verified():
                idle = event.timing.start_ns - event.timing.idle_ns, event.timing.start_ns
                self._use(Role.VERIFIER, Role.DRAFTER, event.timing)
                self._idle.append(idle)
                self.exposed_drafting_s += _common_s(idle, self._drafts)

    def _use(self, role: Role, other: Role, timing: Timing) -> _Span:
        span = timing.start_ns, timing.start_ns + timing.busy_ns
        self._busy[role].append(span)
        self.busy_s[role] += timing.busy_ns / 1e9
        self.both_busy_s += _common_s(span, self._busy[other])
        return span


def _common_s(one: _Span, others: deque[_Span]) -> float:
    """Return the seconds that a span has in common with others, which have none in common with one another."""
    return sum([max(min(one[1], end) - max(one[0], begin), 0) for begin, end in others]) / 1e9
