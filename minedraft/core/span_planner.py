"""What each request of a batch does in one round: its tokens, its drafts, and the KV for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from minedraft.core.draft_book import DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.guarded import GuardedDraftPolicy
from minedraft.core.request import Request
from minedraft.core.rounds import PlannedSpan


@dataclass(slots=True)
class SpanPlanner:
    """Plans the spans of one round, which share the prompt tokens that a round may have.

    Args:
        make_room: preempts requests until a request can have a number of tokens; returns whether it can now.
        batch_size: requests in the batch.

    Attributes:
        num_prompt_tokens: prompt tokens that the verifier caches in the spans planned so far.
    """

    limits: SchedulerLimits
    kv: KvLedger
    book: DraftBook | None
    policy: GuardedDraftPolicy
    make_room: Callable[[Request, int], bool]
    batch_size: int
    num_prompt_tokens: int = field(default=0, init=False)
    _num_drafter_tokens: int = field(default=0, init=False)
    _num_feature_rows: int = field(default=0, init=False)

    def plan(self, request: Request) -> PlannedSpan | None:
        """Return a request's span of the round, with KV reserved; None if it must sit this round out."""
        committed_len = len(request.tokens)
        wanted = self._wanted_drafts(request)
        if wanted:
            self._recompute_features(request)
        missing = committed_len - request.verifier_len
        num_tokens = min(missing, self._num_prompt_tokens_left(request)) if missing > 1 else 1
        if num_tokens <= 0:
            return None
        end = request.verifier_len + num_tokens
        draft_len = self._draft_len(request, wanted) if num_tokens == missing else 0
        if not self.kv.can_reserve(request.id, end + draft_len):
            draft_len = 0
            if not self.make_room(request, end):
                return None
        self.kv.reserve(request.id, end + draft_len)
        draft = prefill = None
        if self.book is not None and draft_len:
            draft = self.book.plan_draft(request, draft_len)
            if len(draft.tokens) > self.book.max_lag:
                self._num_drafter_tokens += len(draft.tokens)
        elif self.book is not None and wanted and (num_prefill := self._prefill_len(request)):
            prefill = self.book.plan_prefill(request, num_prefill)
            self._num_drafter_tokens += num_prefill
        if num_tokens > 1:
            self.num_prompt_tokens += num_tokens
        wants_features = self._wants_features(request, num_tokens, draft_len, is_idle=not wanted)
        return PlannedSpan(request, committed_len, num_tokens, num_tokens == missing, draft, prefill, wants_features)

    def _wanted_drafts(self, request: Request) -> int:
        """Return the number of drafts that the policy wants from the drafter; if 0, the drafter has no part in the
        round, and need not even cache the request."""
        if self.book is None or request.remaining_len <= 1:
            return 0
        return wanted_drafts(self.policy, request, self.batch_size, self.limits.max_draft_len)

    def _draft_len(self, request: Request, wanted: int) -> int:
        """Return the drafts to ask for: the policy's number, less near a limit, where the bonus token needs room."""
        if self.book is None or not wanted:
            return 0
        room = min(request.remaining_len, self.limits.max_model_len - len(request.tokens)) - 1
        return self.book.draft_len(request, min(wanted, room), self._num_drafter_tokens_left)

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
