"""Policies with arbitrary but repeatable decisions, which must never change an answer."""

from __future__ import annotations

from collections.abc import Sequence

from minedraft.core import events
from minedraft.core.policy.base import DraftOffer, ModeDecision
from minedraft.core.request import Request
from minedraft.types import LoanTerms, Mode


class AnyDraftPolicy:
    """Asks for a varying number of drafts and verifies some of the proposals."""

    def __init__(self, period: int) -> None:
        self._period = period
        self._count = 0

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        assert batch_size > 0
        self._count += 1
        return max_draft_len if self._count % self._period else self._count % (max_draft_len + 1)

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        """Verify some of the drafts, of some requests none."""
        self._count += 1
        return [
            offer.num_drafts if self._count % 3 else (index + self._count) % (offer.num_drafts + 1)
            for index, offer in enumerate(offers)
        ]

    def observe(self, event: events.Event, now_s: float) -> None:
        pass


class RestlessMode:
    """Changes mode and sizes every `period` committed rounds."""

    def __init__(self, period: int) -> None:
        self.changes: list[events.ModeChanged] = []
        self._period = period
        self._num_rounds = 0

    def wanted(self, now_s: float) -> ModeDecision | None:
        if self._num_rounds % self._period:
            return None
        number = len(self.changes)  # the same again until it is in force
        return ModeDecision(LoanTerms(list(Mode)[number % 4], 1 + number % 3, 1 + number % 5), "policy")

    def observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.RoundCommitted():
                self._num_rounds += 1
            case events.ModeChanged(why="policy"):
                self.changes.append(event)
