"""What became of the requests of a load."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from minedraft.errors import MineDraftError, ReplaysExhausted

_KEPT = 20


@dataclass(slots=True)
class Tally:
    """Counts of requests; each one that has ended is in exactly one of the counts below `sent`.

    Attributes:
        answered: whole and right. left: the client ended it (abort, deadline, closed stream), and what came was right.
        refused: an error with a hint to try again, before the first token. interrupted: such an error after it, while
            the scheduler or the connection was gone, or because the verifier was lost more often than a request is
            recomputed: no promise of ours.
        wrong: tokens that differ, an answer without its end, an error that should not be.
        lost: no end at all, or an error in the middle of an answer that nothing explains.
        reasons: errors by reason. problems: descriptions of what was wrong or lost, the first ones.
    """

    sent: int = 0
    answered: int = 0
    left: int = 0
    refused: int = 0
    interrupted: int = 0
    wrong: int = 0
    lost: int = 0
    tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def blame(self, what: str, *, is_lost: bool) -> None:
        """Count a request as wrong or lost, and say why."""
        self.wrong += not is_lost
        self.lost += is_lost
        if len(self.problems) < _KEPT:
            self.problems.append(f"{'lost' if is_lost else 'wrong'}: {what}")

    def line(self) -> str:
        counts = f"{self.sent} sent, {self.answered} answered, {self.left} left, {self.refused} refused"
        return f"{counts}, {self.interrupted} interrupted, {self.wrong} wrong, {self.lost} lost"


class Excuses:
    """The times in which a stream may end with an error: the scheduler or a connection was gone."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float]] = []
        self._open_s: float | None = None

    def begin(self) -> None:
        self._open_s = time.monotonic()

    def end(self) -> None:
        assert self._open_s is not None, "begun before"
        self._times.append((self._open_s, time.monotonic()))
        self._open_s = None

    def cover(self, since_s: float, error: MineDraftError) -> bool:
        """Return whether a request that began at `since_s` and has just ended with this error is excused."""
        if not error.retryable:
            return False
        if isinstance(error, ReplaysExhausted):
            return True
        return self._open_s is not None or any(end_s >= since_s for _, end_s in self._times)
