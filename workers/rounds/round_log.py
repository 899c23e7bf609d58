"""Rounds run at most once: the log of the last command of each kind and batch, and its result. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

from minedraft.errors import StaleRound
from minedraft.types import Batch, RoundId

ResultT = TypeVar("ResultT")


class RoundLog(Generic[ResultT]):
    """The last rounds of the present epoch, with their results."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._last: dict[tuple[str, Batch], tuple[int, ResultT]] = {}

    def begin_epoch(self) -> None:
        """Forget every round; commands of the old epoch are stale from now on."""
        self.epoch += 1
        self._last.clear()

    def find(self, method: str, round_id: RoundId) -> ResultT | None:
        """Return the result of this round if it has run before, else None.

        Raises:
            StaleRound: the round is of another epoch, or before the last one of this method and batch.
        """
        self.check_epoch(round_id.epoch)
        number, result = self._last.get((method, round_id.batch), (-1, None))
        if round_id.number < number:
            raise StaleRound(f"{method} of batch {round_id.batch.name} is at round {number}, not {round_id.number}")
        return result if round_id.number == number else None

    def store(self, method: str, round_id: RoundId, result: ResultT) -> None:
        self._last[method, round_id.batch] = (round_id.number, result)

    def check_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise StaleRound(f"the epoch is {self.epoch}, not {epoch}")
