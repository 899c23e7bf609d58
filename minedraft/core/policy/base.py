"""What a policy is asked, and the policies that decide nothing: the settings hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from minedraft.core.events import Event
from minedraft.core.request import Request
from minedraft.types import LoanTerms, Proposal


class DraftPolicy(Protocol):
    """Decides how many tokens to draft for a request, and which drafts to verify.

    It is asked in the loop: an answer must take microseconds. It never changes what the answers are, only how
    fast they come.
    """

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        """Drafts to ask for in this round, 0..max_draft_len. `batch_size`: requests in its batch now."""
        ...

    def select(self, proposals: Sequence[Proposal]) -> Sequence[Proposal]:
        """The proposals of a round to verify: each as it is, shortened to its first drafts, or left out."""
        ...

    def observe(self, event: Event, now_s: float) -> None:
        """Learn from what happens; see `minedraft.core.events.Observer`."""
        ...


class ModePolicy(Protocol):
    """Decides the mode and the sizes to run with."""

    def wanted(self, now_s: float) -> LoanTerms | None:
        """What to run with from now on; None for no change. Asked after every round."""
        ...

    def observe(self, event: Event, now_s: float) -> None:
        """Learn from what happens; see `minedraft.core.events.Observer`."""
        ...


class FixedDraftLen:
    """As many drafts as the settings say, and all of them verified."""

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        return max_draft_len

    def select(self, proposals: Sequence[Proposal]) -> Sequence[Proposal]:
        return proposals

    def observe(self, event: Event, now_s: float) -> None:
        pass


class FixedMode:
    """The mode of the settings."""

    def wanted(self, now_s: float) -> LoanTerms | None:
        return None

    def observe(self, event: Event, now_s: float) -> None:
        pass
