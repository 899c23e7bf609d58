"""The mode of a service whose drafting is suspended."""

from __future__ import annotations

from minedraft.core.events import Event, ModeChanged
from minedraft.core.policy.base import ModeDecision, ModePolicy
from minedraft.core.policy.watchdog import Watchdog
from minedraft.types import LoanTerms, Mode


class SuspendedMode:
    """Runs mode `ar`, in one batch with the seats of both, while a watchdog has suspended drafting; then the mode of
    before again. Otherwise `inner` decides. Rounds without drafts alone would leave the batches at half their size.
    """

    def __init__(self, inner: ModePolicy, watchdog: Watchdog) -> None:
        self._inner = inner
        self._watchdog = watchdog
        self._present: LoanTerms | None = None
        self._before: LoanTerms | None = None  # while this policy has the service in `ar`
        self._is_asked = False  # for terms that are not in force yet

    def wanted(self, now_s: float) -> ModeDecision | None:
        present = self._present
        if self._is_asked or present is None:
            return None
        if self._watchdog.is_suspended:
            if not present.mode.has_drafts:
                return None
            self._before = present
            size = present.max_batch_size * present.mode.num_batches
            decision = ModeDecision(LoanTerms(Mode.AR, size, present.draft_len), "drafting is suspended")
        elif self._before is not None:
            decision, self._before = ModeDecision(self._before, "drafting is resumed"), None
        else:
            return self._inner.wanted(now_s)
        self._is_asked = True
        return decision

    def observe(self, event: Event, now_s: float) -> None:
        if isinstance(event, ModeChanged):
            self._present = LoanTerms(event.mode, event.max_batch_size, event.draft_len)
            self._is_asked = False
        self._inner.observe(event, now_s)
