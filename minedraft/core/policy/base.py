"""What a policy is asked, and the policies that decide nothing: the settings hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from minedraft.core.events import Event
from minedraft.core.request import Request
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import DraftMethod, LoanTerms


@dataclass(frozen=True, slots=True)
class DraftOffer:
    """The drafts that came for one request of a round: their number, and not which tokens they are.

    Under rejection sampling, a choice that looked at the drawn tokens would change the distribution of the output:
    with p = q, keeping only the drafts of one token would make that token more likely.

    scores: as asked for by `SchedulerLimits.scores`; () if there are none. A PEAK score says nothing of its own
    draft, only of those before; whoever decides about a draft by a DRAWN score or by later PEAK ones looks at it.
    """

    request_id: int
    num_drafts: int
    scores: tuple[float, ...] = ()
    source: DraftMethod = DraftMethod.MODEL  # what made them


class DraftPolicy(Protocol):
    """Decides how many tokens to draft for a request, and how many of the drafts to verify.

    It is asked in the loop: an answer must take microseconds. It changes how fast answers come, never what they are.
    A policy that raises, or answers with something else than whole numbers, is replaced by `FixedDraftLen`; a number
    out of range is taken as the nearest one in range.
    """

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        """Return how many drafts to ask for in this round, 0..max_draft_len. `batch_size`: requests in its batch."""
        ...

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        """Return for each offer of a round how many of its drafts to verify, from the first on: 0..num_drafts."""
        ...

    def observe(self, event: Event, now_s: float) -> None:
        """Learn from an event; see `minedraft.core.events.Observer`."""
        ...


@dataclass(frozen=True, slots=True)
class ModeDecision:
    """Mode and sizes to run with from now on, and why."""

    terms: LoanTerms
    why: str


class ModePolicy(Protocol):
    """Decides the mode and the sizes to run with. One that raises, or asks for what cannot be, is replaced by
    `FixedMode`."""

    def wanted(self, now_s: float) -> ModeDecision | None:
        """Return what to run with from now on; None for no change. Asked after every round."""
        ...

    def observe(self, event: Event, now_s: float) -> None:
        """Learn from an event; see `minedraft.core.events.Observer`."""
        ...


class FixedDraftLen:
    """Asks for as many drafts as the settings say, and has all of them verified.

    Args:
        most: a bound on the number of drafts.
    """

    def __init__(self, most: int = MAX_DRAFT_LEN) -> None:
        self._most = most

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        return min(max_draft_len, self._most)

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        return [offer.num_drafts for offer in offers]

    def observe(self, event: Event, now_s: float) -> None:
        pass


class FixedMode:
    """Keeps the mode of the settings."""

    def wanted(self, now_s: float) -> ModeDecision | None:
        return None

    def observe(self, event: Event, now_s: float) -> None:
        pass
