"""How long something has not moved that should."""

from __future__ import annotations


class Stall:
    """Watches a count that differs from look to look while there is progress.

    Args:
        longest_gap_s: one look adds at most so many seconds. A watcher that was stopped itself (SIGSTOP, a laptop that
            slept, a blocked event loop) has not seen the others stand still.
    """

    def __init__(self, longest_gap_s: float) -> None:
        self._longest_gap_s = longest_gap_s
        self._last_look_s: float | None = None
        self._count = -1
        self.stalled_s = 0.0

    def look(self, now_s: float, count: int, *, is_idle: bool) -> float:
        """Return for how many seconds, as far as looks have seen, the count has stood still. One that is idle may.

        Args:
            now_s: monotonic clock.
        """
        gap_s = 0.0 if self._last_look_s is None else min(max(now_s - self._last_look_s, 0.0), self._longest_gap_s)
        is_still = not is_idle and count == self._count
        self.stalled_s = self.stalled_s + gap_s if is_still else 0.0
        self._last_look_s, self._count = now_s, count
        return self.stalled_s
