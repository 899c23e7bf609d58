"""How long a round waits for the drafter, which is an accelerator: the verify can go on without drafts."""

from __future__ import annotations

from minedraft.core.liveness.recent_times import RecentTimes

LEAST_PATIENCE_S = 1.0
FIRST_PATIENCE_S = 10.0
"""Before anything was drafted: kernels may be compiled when they are first used."""

PATIENCE_IN_COMMANDS = 10


class DraftPatience:
    """Learns from the times of the drafter's commands how long one may take."""

    def __init__(self) -> None:
        self._times = RecentTimes()
        self._limit_s = FIRST_PATIENCE_S
        self._num_until_update = 1

    @property
    def limit_s(self) -> float:
        """Seconds to wait for a reply."""
        return self._limit_s

    def answered(self, took_s: float) -> None:
        """Learn from a command that was answered in time."""
        self._times.add(took_s)
        self._num_until_update -= 1
        if not self._num_until_update:
            self._update()

    def late(self) -> None:
        """Learn from one that was not: a drafter that has become slower for good is waited for longer and longer,
        until its drafts come in time."""
        self._times.add(2 * self._limit_s / PATIENCE_IN_COMMANDS)
        self._update()

    def _update(self) -> None:
        self._num_until_update = min(len(self._times), 16)  # the sorting costs more than all else here
        self._limit_s = max(LEAST_PATIENCE_S, PATIENCE_IN_COMMANDS * self._times.p99_s)
