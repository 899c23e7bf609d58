"""The drafting that overlap does not hide: an observer."""

from __future__ import annotations

from collections import deque

from minedraft.core import events
from minedraft.messages import Timing

_NUM_KEPT = 8  # commands that can overlap one of the other worker, and are told of before or after it


class ExposedDrafting:
    """The time that the verifier was idle while the drafter drafted: what overlap is to hide.

    Attributes:
        seconds: since the start, up to the last idle time that a verify has ended.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        # From and to, in nanoseconds. Either may be told of first, so both are kept for a while.
        self._drafts: deque[tuple[int, int]] = deque(maxlen=_NUM_KEPT)
        self._idle: deque[tuple[int, int]] = deque(maxlen=_NUM_KEPT)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.Drafted() if not event.is_prefill:
                self._draft(event.timing)
            case events.Verified():
                self._verify(event.timing)

    def _draft(self, timing: Timing) -> None:
        span = timing.start_ns, timing.start_ns + timing.busy_ns
        self._drafts.append(span)
        self.seconds += sum([_common_s(span, idle) for idle in self._idle])

    def _verify(self, timing: Timing) -> None:
        span = timing.start_ns - timing.idle_ns, timing.start_ns
        self._idle.append(span)
        self.seconds += sum([_common_s(span, draft) for draft in self._drafts])


def _common_s(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Return the seconds that two spans of nanoseconds have in common."""
    return max(min(one[1], other[1]) - max(one[0], other[0]), 0) / 1e9
