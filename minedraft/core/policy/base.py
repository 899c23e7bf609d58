"""The interfaces of policies, and the default policies, which apply the settings as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from minedraft.core.events import Event
from minedraft.core.request import Request
from minedraft.types import LoanTerms, Proposal


class DraftPolicy(Protocol):
    """Decides how many tokens to draft for a request, and which drafts to verify.

    The event loop calls it in every round, so a call must take microseconds. A policy changes the speed of
    answers, never the distribution of their tokens.
    """

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        """Return the drafts to ask for in this round, 0..max_draft_len. batch_size: requests in its batch now."""
        ...

    def select(self, proposals: Sequence[Proposal]) -> Sequence[Proposal]:
        """Return the proposals of a round to verify: each unchanged, truncated to its first drafts, or left out."""
        ...

    def observe(self, event: Event, now_s: float) -> None:
        """Learn from what happens; see `minedraft.core.events.Observer`."""
        ...


class ModePolicy(Protocol):
    """Decides the mode and the sizes to run with."""

    def wanted(self, now_s: float) -> LoanTerms | None:
        """Return the terms to run with from now on, None for no change. Called after every round."""
        ...

    def observe(self, event: Event, now_s: float) -> None:
        """Learn from what happens; see `minedraft.core.events.Observer`."""
        ...


class FixedDraftLen:
    """Asks for as many drafts as the settings say and verifies them all."""

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        return max_draft_len

    def select(self, proposals: Sequence[Proposal]) -> Sequence[Proposal]:
        return proposals

    def observe(self, event: Event, now_s: float) -> None:
        pass


class FixedMode:
    """Keeps the mode of the settings."""

    def wanted(self, now_s: float) -> LoanTerms | None:
        return None

    def observe(self, event: Event, now_s: float) -> None:
        pass
