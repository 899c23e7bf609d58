"""Policies whose answers are used only as far as they make sense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple

from minedraft.core.policy.base import DraftOffer, DraftPolicy, FixedDraftLen, FixedMode, ModeDecision, ModePolicy
from minedraft.core.request import Request
from minedraft.types import LoanTerms

_SAFE_DRAFT_LEN = 3  # where the settings leave the number to the policy that has failed, they allow too many


class GuardedDraftPolicy:
    """Asks a policy, bounds its answers, and replaces it by `FixedDraftLen` once it fails.

    Args:
        on_failure: called with what the policy did wrong.
    """

    def __init__(self, policy: DraftPolicy, on_failure: Callable[[str], None]) -> None:
        self._policy = policy
        self._on_failure = on_failure

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        """Return how many drafts to ask for, 0..max_draft_len."""
        try:
            wanted = _whole(self._policy.draft_len(request, batch_size, max_draft_len))
        except Exception as error:
            self._replace("draft_len", error)
            return min(max_draft_len, _SAFE_DRAFT_LEN)
        return min(max(wanted, 0), max_draft_len)

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        """Return for each offer how many drafts to verify, 0..num_drafts."""
        try:
            chosen = [_whole(count) for count in self._policy.select(offers)]
            if len(chosen) != len(offers):
                raise ValueError(f"{len(chosen)} answers for {len(offers)} offers")
        except Exception as error:
            self._replace("select", error)
            return [offer.num_drafts for offer in offers]
        return [min(max(count, 0), offer.num_drafts) for count, offer in zip(chosen, offers, strict=True)]

    def _replace(self, method: str, error: Exception) -> None:
        self._on_failure(f"{type(self._policy).__name__}.{method}: {type(error).__name__}: {error}")
        self._policy = FixedDraftLen(_SAFE_DRAFT_LEN)


class GuardedModePolicy:
    """Asks a policy, checks its answers, and replaces it by `FixedMode` once it fails.

    Args:
        on_failure: called with what the policy did wrong.
    """

    def __init__(self, policy: ModePolicy, on_failure: Callable[[str], None]) -> None:
        self._policy = policy
        self._on_failure = on_failure

    def wanted(self, now_s: float) -> ModeDecision | None:
        """Return what to run with from now on; None for no change."""
        try:
            if (decision := self._policy.wanted(now_s)) is None:
                return None
            return ModeDecision(LoanTerms.check(*astuple(decision.terms)), decision.why)
        except Exception as error:
            self._on_failure(f"{type(self._policy).__name__}.wanted: {type(error).__name__}: {error}")
            self._policy = FixedMode()
            return None


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{number!r} is not a whole number")
    return number
