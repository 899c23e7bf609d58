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

    def plan(self, request: Request) -> PlannedSpan | None:
        """Return a request's span of the round, with KV reserved; None if it must sit this round out."""
        committed_len = len(request.tokens)
        missing = committed_len - request.verifier_len
        num_tokens = min(missing, self.limits.prefill_chunk - self.num_prompt_tokens) if missing > 1 else 1
        if num_tokens <= 0:
            return None
        end = request.verifier_len + num_tokens
        draft_len = self._draft_len(request) if num_tokens == missing else 0
        if not self.kv.can_reserve(request.id, end + draft_len):
            draft_len = 0
            if not self.make_room(request, end):
                return None
        self.kv.reserve(request.id, end + draft_len)
        draft = prefill = None
        if self.book is not None and draft_len:
            draft = self.book.plan_draft(request, draft_len)
        elif self.book is not None and (num_prefill := self._prefill_len(request)):
            prefill = self.book.plan_prefill(request, num_prefill)
            self._num_drafter_tokens += num_prefill
        if num_tokens > 1:
            self.num_prompt_tokens += num_tokens
        return PlannedSpan(request, committed_len, num_tokens, num_tokens == missing, draft, prefill)

    def _draft_len(self, request: Request) -> int:
        """Return the drafts to ask for: the policy's number, less near a limit, where the bonus token needs room."""
        limits, most = self.limits, self._draft_limit(request)
        if self.book is None or not most:
            return 0
        wanted = self.policy.draft_len(request, self.batch_size, most)
        room = min(request.remaining_len, limits.max_model_len - len(request.tokens)) - 1
        return self.book.draft_len(request, min(wanted, room))

    def _prefill_len(self, request: Request) -> int:
        """Return the committed tokens that the drafter should cache during the verify; 0 if no draft will follow."""
        if self.book is None or not self._draft_limit(request) or request.remaining_len <= 1:
            return 0
        return self.book.prefill_len(request, self.limits.prefill_chunk - self._num_drafter_tokens)

    def _draft_limit(self, request: Request) -> int:
        """Return the most drafts that service and request allow; 0 if the drafter has no part in the request."""
        return request.spec.sampling.draft_limit(self.limits.draft_len)
