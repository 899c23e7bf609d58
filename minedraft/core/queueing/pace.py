"""When a refused request has a chance: an observer of how fast requests end. Pure."""

from __future__ import annotations

from collections import deque

from minedraft.core import events

MIN_RETRY_S = 0.1
MAX_RETRY_S = 30.0
_WINDOW_S = 30.0
_MAX_ENDS = 256
_UNKNOWN_S = 1.0  # until a request has ended


class Pace:
    """Estimates when a place in the queue is free.

    A place becomes free whenever a request ends, and all that were refused since the last one want it: the n-th
    of them is told to come after n times the mean time between two ends.
    """

    def __init__(self) -> None:
        self._ends_s: deque[float] = deque(maxlen=_MAX_ENDS)
        self._num_refused = 0

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        if isinstance(event, events.RequestEnded):
            self._ends_s.append(now_s)
            self._num_refused = max(self._num_refused - 1, 0)

    def refuse(self, now_s: float) -> float:
        """Count a refused request and return the seconds after which it should try again."""
        self._num_refused += 1
        while self._ends_s and self._ends_s[0] < now_s - _WINDOW_S:
            self._ends_s.popleft()
        interval_s = (now_s - self._ends_s[0]) / len(self._ends_s) if self._ends_s else _UNKNOWN_S
        return min(max(self._num_refused * interval_s, MIN_RETRY_S), MAX_RETRY_S)
