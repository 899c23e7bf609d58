"""Stops drafting where drafts are useless, says why, and tries again later.

Useless drafts are a fault that nothing else shows: the output stays right, only the time is lost. Causes are a draft
model that is not the target's, weights that are noise, a cache that holds something else than the tokens; and for
one request a text that the draft model does not know. Drafts that were looked up in the text cost no forward, and are
not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

from minedraft.core import events
from minedraft.core.policy.base import DraftOffer, DraftPolicy
from minedraft.core.policy.chart import AcceptanceChart, Baseline
from minedraft.core.request import Request
from minedraft.types import DraftMethod, Role

_SERVICE_LIMIT = log(1e6)  # rows of useful drafts between two false alarms
_REQUEST_LIMIT = log(1e4)
_MOST_ROWS = 64  # of one request, in a row, that count for the service: one odd text is not a broken drafter
_NUM_EMPTY = 32  # proposals without a token, in a row, after which the drafter is broken
_NUM_EMPTY_OF_ONE = 16
_FIRST_PAUSE_S = 15.0  # then twice as long after each trial that fails
_LAST_PAUSE_S = 900.0
_FIRST_PAUSE_TOKENS = 64  # of a request; then twice as many
_LEAST_USUAL = 0.15  # a baseline that was this good once
_NO_DRAFTS = "the drafter proposes nothing: its logits are not finite"


@dataclass(slots=True)
class _Watched:
    """One request.

    has_model_drafts: whether its last drafts were a model's. num_useless: rows since the last one whose first draft
    was accepted. rests_until: output tokens from which it drafts again; None while it drafts.
    """

    chart: AcceptanceChart = field(default_factory=lambda: AcceptanceChart(_REQUEST_LIMIT))
    output_len: int = 0
    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_useless: int = 0
    num_empty: int = 0
    has_model_drafts: bool = True
    pause_tokens: int = _FIRST_PAUSE_TOKENS
    rests_until: int | None = None
    is_on_trial: bool = False


class Watchdog:
    """A draft policy that asks `inner` where drafting is not suspended.

    A request's drafting is suspended when its chart (see `AcceptanceChart`) is alarmed, and that of the service when
    the chart of all requests is, or when the drafter proposes nothing. After a pause drafts are tried again, and the
    drafter catches up as after a preemption. What a client sets during a loan is left alone.
    """

    def __init__(self, inner: DraftPolicy) -> None:
        self._inner = inner
        self._events: list[events.Event] = []
        self._now_s = 0.0
        self._is_lent = False
        self._may_be_empty = False  # n-grams are often not found
        self._start()

    def take_events(self) -> Sequence[events.Event]:
        """Return what was suspended and resumed since the last call."""
        happened, self._events = self._events, []
        return happened

    @property
    def is_suspended(self) -> bool:
        """Whether the whole service decodes without drafts at present."""
        return self._until_s is not None and not self._is_lent

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        if not self._is_lent:
            watched = self._look_at(request)
            if self._until_s is not None or self._rests(request, watched):
                return 0
        return self._inner.draft_len(request, batch_size, max_draft_len)

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        if not self._is_lent:
            for offer in offers:
                self._look_at_offer(offer)
        return self._inner.select(offers)

    def observe(self, event: events.Event, now_s: float) -> None:
        self._now_s = now_s
        if self._until_s is not None and now_s >= self._until_s and not self._is_lent:
            self._try_again()
        match event:
            case events.RequestEnded():
                self._requests.pop(event.request_id, None)
            case events.WorkerJoined() if event.info.role is Role.DRAFTER:
                self._may_be_empty = event.info.draft_method is DraftMethod.NGRAM
                if self._until_s is not None or self._is_on_trial:
                    self._events.append(events.DraftingResumed(None, is_trial=False))
                self._start()  # another drafter, or one with an empty cache
            case events.ModeChanged():
                self._is_lent = event.is_lent
        self._inner.observe(event, now_s)

    # Inside

    def _start(self) -> None:
        self._requests: dict[int, _Watched] = {}
        self._chart = AcceptanceChart(_SERVICE_LIMIT)
        self._baseline = Baseline()
        self._num_empty = 0
        self._until_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._is_on_trial = False

    def _look_at(self, request: Request) -> _Watched:
        """Learn from the request's last round, if it had drafts."""
        watched = self._requests.get(request.id)
        if watched is None:
            watched = self._requests[request.id] = _Watched()
        else:
            is_next = request.num_rounds == watched.num_rounds + 1 and request.num_drafted > watched.num_drafted
            if is_next and watched.has_model_drafts:
                self._add(request, watched, request.num_accepted > watched.num_accepted)
        watched.num_rounds, watched.num_drafted = request.num_rounds, request.num_drafted
        watched.num_accepted, watched.output_len = request.num_accepted, request.output_len
        return watched

    def _add(self, request: Request, watched: _Watched, is_accepted: bool) -> None:
        watched.chart.add(is_accepted, self._baseline.useful)
        self._baseline.add(is_accepted)
        watched.num_useless = 0 if is_accepted else watched.num_useless + 1
        if watched.num_useless <= _MOST_ROWS:
            self._chart.add(is_accepted)
        if self._until_s is not None:  # the last drafts of a service that is suspended already
            return
        if self._chart.is_alarmed:
            self._suspend(self._cause(), self._chart.num_accepted, self._chart.num_rows)
        elif (chart := watched.chart).is_alarmed:
            self._rest(request.id, watched, "its drafts are not accepted", chart.num_accepted, chart.num_rows)
        else:
            self._clear(request.id, watched)

    def _clear(self, request_id: int, watched: _Watched) -> None:
        """End the trials whose drafts are accepted."""
        if watched.is_on_trial and not watched.chart.evidence:
            watched.is_on_trial, watched.pause_tokens = False, _FIRST_PAUSE_TOKENS
            self._events.append(events.DraftingResumed(request_id, is_trial=False))
        if self._is_on_trial and not self._chart.evidence:
            self._is_on_trial, self._pause_s = False, _FIRST_PAUSE_S
            self._events.append(events.DraftingResumed(None, is_trial=False))

    def _cause(self) -> str:
        usual = self._baseline.rate
        if usual < _LEAST_USUAL:
            return "drafts are not accepted: the draft model does not fit the target, or its weights are broken"
        return f"drafts are accepted no more; {usual:.0%} of first drafts were, on average"

    def _suspend(self, cause: str, num_accepted: int, num_rows: int) -> None:
        self._until_s = self._now_s + self._pause_s
        told = events.DraftingSuspended(None, cause, num_accepted, num_rows, again_after_s=self._pause_s)
        self._events.append(told)
        self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)
        self._is_on_trial = False

    def _try_again(self) -> None:
        self._until_s = None
        self._is_on_trial = True
        self._chart.restart(is_suspicious=True)
        self._num_empty = _NUM_EMPTY // 2
        self._requests.clear()
        self._events.append(events.DraftingResumed(None, is_trial=True))

    def _rest(self, request_id: int, watched: _Watched, cause: str, num_accepted: int, num_rows: int) -> None:
        pause = watched.pause_tokens
        watched.rests_until = watched.output_len + pause
        told = events.DraftingSuspended(request_id, cause, num_accepted, num_rows, again_after_tokens=pause)
        self._events.append(told)
        watched.pause_tokens *= 2
        watched.is_on_trial = False

    def _rests(self, request: Request, watched: _Watched) -> bool:
        if watched.rests_until is None:
            return False
        if request.output_len < watched.rests_until:
            return True
        watched.rests_until, watched.is_on_trial, watched.num_empty = None, True, 0
        watched.chart.restart(is_suspicious=True)
        self._events.append(events.DraftingResumed(request.id, is_trial=True))
        return False

    def _look_at_offer(self, offer: DraftOffer) -> None:
        watched = self._requests.get(offer.request_id)
        if watched is None or self._until_s is not None:
            return
        watched.has_model_drafts = offer.source is not DraftMethod.NGRAM
        if self._may_be_empty:
            return
        if offer.num_drafts:
            self._num_empty = watched.num_empty = 0
            return
        self._num_empty += 1
        watched.num_empty += 1
        if self._num_empty >= _NUM_EMPTY:
            self._suspend(_NO_DRAFTS, 0, self._num_empty)
        elif watched.num_empty >= _NUM_EMPTY_OF_ONE > self._num_empty:  # others have drafts
            self._rest(offer.request_id, watched, _NO_DRAFTS, 0, watched.num_empty)
