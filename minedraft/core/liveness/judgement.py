"""The judgement on a worker that owes an answer: it lives, or it hangs. Pure: whoever asks brings the time.

A forward may take as long as it takes: nothing is judged by how long a command lasts. A worker that lives says so
about twice a second while it owes an answer (a heartbeat), and how far its device has got. It hangs if it says nothing
for too long (its process is stopped, its event loop is blocked), or if its device stands still for too long.
"""

from __future__ import annotations

from dataclasses import dataclass

from minedraft.core.liveness.recent_times import RecentTimes
from minedraft.core.liveness.stall import Stall
from minedraft.errors import LossCause

LEAST_LIMIT_S = 4.0
"""Together with the time between two heartbeats and two looks, a hang is found within five seconds."""

FIRST_LIMIT_S = 30.0
"""How long the device of a worker that has answered nothing yet may stand still: kernels may be compiled when they are
first used."""

LIMIT_IN_STEPS = 20
LONGEST_GAP_S = 1.0
"""Two looks further apart than this were not: the one who looks was held up itself."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of a worker at one moment. Counts only grow.

    Attributes:
        num_owed: commands that it has not answered. num_moving: those of them that its device works on.
        num_heard: messages that came from it, answers and heartbeats. num_answered: answers of its device.
        progress: how far its device has got, as far as it has told.
    """

    num_owed: int = 0
    num_moving: int = 0
    num_heard: int = 0
    num_answered: int = 0
    progress: int = 0


class LivenessJudge:
    """Judges one link to a worker, look by look.

    Attributes:
        times: from command to answer, of the last ones.
    """

    def __init__(self) -> None:
        self.times = RecentTimes()
        self._silence = Stall(LONGEST_GAP_S)
        self._standstill = Stall(LONGEST_GAP_S)

    @property
    def limit_s(self) -> float:
        """Seconds of silence or standstill that are a hang: 20 times the step time, and never less than a few."""
        return max(LEAST_LIMIT_S, LIMIT_IN_STEPS * self.times.p99_s)

    def look(self, now_s: float, signs: Signs) -> LossCause | None:
        """Return why the worker must be taken to hang, None if it need not.

        Args:
            now_s: monotonic clock. Call it at least once a second.
        """
        silent_s = self._silence.look(now_s, signs.num_heard, is_idle=not signs.num_owed)
        moved = signs.progress + signs.num_answered
        still_s = self._standstill.look(now_s, moved, is_idle=not signs.num_moving)
        if max(silent_s, still_s) < LEAST_LIMIT_S:
            return None
        limit_s = self.limit_s
        still_limit_s = limit_s if len(self.times) else max(limit_s, FIRST_LIMIT_S)
        if silent_s < limit_s and still_s < still_limit_s:
            return None
        # How far the device of a silent worker has got is not known.
        return LossCause.SILENT if silent_s >= limit_s / 2 else LossCause.NO_PROGRESS
