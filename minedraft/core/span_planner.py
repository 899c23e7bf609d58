"""What each request of a batch does in one round: its tokens, its drafts, and the KV for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minedraft.core.draft_book import DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.guarded import GuardedDraftPolicy
from minedraft.core.request import Request
from minedraft.core.rounds import PlannedSpan, shorten
from minedraft.messages import Proposal


@dataclass(slots=True)
class SpanPlanner:
    """Plans the spans of one round, which share the prompt tokens that a round may have.

    Args:
        make_room: preempts requests until a request can have a number of tokens; returns whether it can now.
        members: the requests of the batch.

    Attributes:
        num_prompt_tokens: prompt tokens that the verifier caches in the spans planned so far.
    """

    limits: SchedulerLimits
    kv: KvLedger
    book: DraftBook | None
    policy: GuardedDraftPolicy
    make_room: Callable[[Request, int], bool]
    members: Sequence[Request]
    num_prompt_tokens: int = field(default=0, init=False)
    _num_drafter_tokens: int = field(default=0, init=False)
    _num_feature_rows: int = field(default=0, init=False)
    _runs_ahead: bool = field(init=False)
    _has_ready: bool = field(init=False)

    def __post_init__(self) -> None:
        book = self.book
        self._runs_ahead = book is not None and book.can_run_ahead and self.limits.num_branches > 0
        self._has_ready = self._runs_ahead and any(book.ready(member) for member in self.members if book is not None)

    def plan(self, request: Request) -> PlannedSpan | None:
        """Return a request's span of the round, with KV reserved; None if it must sit this round out."""
        committed_len = len(request.tokens)
        wanted = self._wanted_drafts(request)
        if wanted:
            self._recompute_features(request)
        missing = committed_len - request.verifier_len
        is_prompt = missing > request.last_forced + 1
        num_tokens = min(missing, self._num_prompt_tokens_left(request)) if is_prompt else max(missing, 1)
        if num_tokens <= 0:
            return None
        end = request.verifier_len + num_tokens
        is_last = num_tokens == missing
        ready = self._ready(request, wanted) if is_last else None
        draft_len = self._draft_len(request, wanted, ready) if is_last else 0
        if not self.kv.can_reserve(request.id, end + draft_len):
            draft_len = 0
            if not self.make_room(request, end):
                return None
        self.kv.reserve(request.id, end + draft_len)
        draft = prefill = None
        if ready is not None:
            ready = shorten(ready, draft_len)
        elif self.book is not None and draft_len:
            draft = self.book.plan_draft(request, draft_len)
            if len(draft.tokens) > self.book.max_lag:
                self._num_drafter_tokens += len(draft.tokens)
        elif self.book is not None and wanted and (num_prefill := self._prefill_len(request)):
            prefill = self.book.plan_prefill(request, num_prefill)
            self._num_drafter_tokens += num_prefill
        if is_prompt:
            self.num_prompt_tokens += num_tokens
        wants_features = self._wants_features(request, num_tokens, draft_len, is_idle=not wanted)
        ahead_len = self._ahead_len(request, wanted) if is_last and prefill is None else 0
        return PlannedSpan(
            request,
            committed_len,
            num_tokens,
            is_last,
            draft,
            prefill,
            wants_features,
            ready=ready,
            ahead_len=ahead_len,
            num_forced=0 if is_prompt else num_tokens - 1,
        )

    def _wanted_drafts(self, request: Request) -> int:
        """Return the number of drafts that the policy wants from the drafter; if 0, the drafter has no part in the
        round, and need not even cache the request."""
        if self.book is None or request.remaining_len <= 1:
            return 0
        return wanted_drafts(self.policy, request, len(self.members), self.limits.max_draft_len)

    def _room(self, request: Request) -> int:
        """Return how many drafts can be committed and still leave room for a bonus token."""
        return min(request.remaining_len, self.limits.max_model_len - len(request.tokens)) - 1

    def _ready(self, request: Request, wanted: int) -> Proposal | None:
        """Return the drafts that were prepared for this round; None if there are none."""
        ready = self.book.ready(request) if self.book is not None and self._has_ready and wanted else None
        return None if ready is None else shorten(ready, max(min(wanted, self._room(request)), 0))

    def _draft_len(self, request: Request, wanted: int, ready: Proposal | None) -> int:
        """Return how many drafts to verify: those that are ready, or those to ask for. If only drafts of others are
        ready, none are asked for: the verify then need not wait, and the drafter runs ahead of this request as well."""
        if ready is not None:
            return len(ready.tokens)
        if self.book is None or not wanted or self._has_ready:
            return 0
        return self.book.draft_len(request, min(wanted, self._room(request)), self._num_drafter_tokens_left)

    def _ahead_len(self, request: Request, wanted: int) -> int:
        """Return how many drafts to prepare for the next round: this one commits at least one token."""
        return max(min(wanted, self._room(request) - 1), 0) if self._runs_ahead else 0

    def _prefill_len(self, request: Request) -> int:
        """Return the committed tokens that the drafter should cache during the verify."""
        return 0 if self.book is None else self.book.prefill_len(request, self._num_drafter_tokens_left)

    def _recompute_features(self, request: Request) -> None:
        """Have the verifier run tokens of a request again if the drafter needs features that are missing."""
        if self.book is not None and self.num_prompt_tokens < self._max_prompt_tokens:
            budget = self.limits.prefill_chunk
            request.verifier_len = self.book.recompute_from(request, request.verifier_len, budget)

    def _num_prompt_tokens_left(self, request: Request) -> int:
        """Return the prompt tokens that a request may have in this round. One that runs tokens again leaves half of
        them to newcomers."""
        most = self._max_prompt_tokens
        if self.book is not None and self.book.is_recomputing(request.id):
            most = max(most // 2, 1)
        return min(most, self._max_prompt_tokens - self.num_prompt_tokens)

    def _wants_features(self, request: Request, num_tokens: int, draft_len: int, *, is_idle: bool) -> bool:
        """Return whether the verifier should deliver the features of the request's tokens in this round. If the policy
        wants no drafts now (`is_idle`), it may soon want some, and a gap would have to be computed again."""
        if self.book is None or request.remaining_len <= 1:
            return False
        if is_idle and not request.spec.sampling.draft_limit(self.limits.max_draft_len):
            return False
        num_rows = self._num_feature_rows + num_tokens + draft_len
        start = request.verifier_len
        is_wanted = self.book.wants_features(request, start, start + num_tokens, is_idle=is_idle)
        if num_rows > self.book.max_feature_rows or not is_wanted:
            return False
        self._num_feature_rows = num_rows
        return True

    @property
    def _max_prompt_tokens(self) -> int:
        """Prompt tokens in this round: as many as the limits say, but less where their features, beside those of the
        requests that decode, would not fit in a message."""
        if self.book is None:
            return self.limits.prefill_chunk
        return min(self.limits.prefill_chunk, self.book.max_feature_rows // 2)

    @property
    def _num_drafter_tokens_left(self) -> int:
        return self.limits.prefill_chunk - self._num_drafter_tokens


def wanted_drafts(policy: GuardedDraftPolicy, request: Request, batch_size: int, draft_len: int) -> int:
    """Return the number of drafts that a policy wants, within what service and request allow."""
    most = request.spec.sampling.draft_limit(draft_len)
    return policy.draft_len(request, batch_size, most) if most else 0
