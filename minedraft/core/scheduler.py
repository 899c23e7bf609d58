"""The scheduling policy, pure: no asyncio, no gRPC, no clock, no log. The pipeline drives it.

A round of one batch is `plan` -> (draft) -> `assemble` -> (verify) -> `commit`. Both batches go
through the same calls, interleaved in any order; requests in a planned round are `in_round` and
nobody else touches them until it is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from minedraft.core.batches import BatchManager
from minedraft.core.draft_book import DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.core.request import NewRequest, Request, RequestUpdate
from minedraft.core.rounds import PlannedSpan, RoundPlan, to_verify_span, truncate_output
from minedraft.errors import InvalidRequest, MineDraftError, NumericError, Overloaded, ProtocolError
from minedraft.types import Batch, FinishReason, LoanTerms, Mode, Proposal, Verdict, VerifySpan


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """max_batch_size: requests a batch (m). draft_len: tokens proposed per request (k).
    prefill_chunk: prompt tokens a round may carry beside decoding requests, per worker.
    max_waiting: requests queued beyond the seats. max_model_len: tokens a request may have."""

    mode: Mode = Mode.MINEDRAFT
    max_batch_size: int = 8
    draft_len: int = 3
    prefill_chunk: int = 256
    max_waiting: int = 256
    max_model_len: int = 8192

    def __post_init__(self) -> None:
        if not self.mode.has_drafts:
            object.__setattr__(self, "draft_len", 0)  # frozen, and one name for k is enough

    @property
    def num_batches(self) -> int:
        return self.mode.num_batches

    def lent(self, terms: LoanTerms) -> SchedulerLimits:
        """These limits, with what a borrower of the service sets."""
        return replace(self, mode=terms.mode, max_batch_size=terms.max_batch_size, draft_len=terms.draft_len)


@dataclass(slots=True)
class SchedulerCounters:
    preemptions: int = 0
    stale_proposals: int = 0
    failed_commands: int = 0  # refused by a worker, or answered against the contract
    verified_drafts: int = 0
    accepted_drafts: int = 0
    drafted_rows: int = 0  # sampled rows that had drafts
    output_tokens: int = 0
    finished: int = 0
    rounds: dict[Batch, int] = field(default_factory=lambda: dict.fromkeys(Batch, 0))  # committed


class Scheduler:
    """Owns every request and decides what each round does.

    Args:
        verifier_kv: mirror of the verifier's KV.
        book: what the drafter holds; None decodes without drafts. Set it to None when the drafter is
            lost (it is an accelerator, not a dependency) and to a new one when a drafter is there again.
    """

    def __init__(self, limits: SchedulerLimits, verifier_kv: KvLedger, book: DraftBook | None) -> None:
        self.limits = limits
        self._next_limits: SchedulerLimits | None = None
        self.verifier_kv = verifier_kv
        self.book = book
        self.batches = BatchManager(limits.num_batches, limits.max_batch_size)
        self.waiting: deque[Request] = deque()
        self.requests: dict[int, Request] = {}
        self.counters = SchedulerCounters()
        self._next_id = 1
        self._round_number = 0
        self._num_admitted = 0
        self._admission: dict[int, int] = {}  # request id -> when it was first seated; the youngest is preempted

    # Requests come and go

    def add(self, new: NewRequest) -> Request:
        """Accept a request; it starts at the next round that has room.

        Raises:
            InvalidRequest: it could never run (empty, longer than the context or the KV memory).
            Overloaded: the waiting queue is full.
        """
        self._check(new)
        # Seats count as room: a burst that fits the batches is not a queue.
        num_seats = self.limits.num_batches * self.limits.max_batch_size - self.batches.num_requests
        limit = self.limits.max_waiting + max(num_seats, 0)
        if len(self.waiting) >= limit:
            raise Overloaded(f"{len(self.waiting)} requests are waiting, the limit is {limit}")
        request = Request.create(self._next_id, new)
        self._next_id += 1
        self.requests[request.id] = request
        self.waiting.append(request)
        return request

    def abort(self, request_id: int) -> RequestUpdate | None:
        """End a request; None when it is unknown or ends with the round it is part of."""
        request = self.requests.get(request_id)
        if request is None or request.is_aborted:
            return None
        request.is_aborted = True
        return None if request.in_round else self.finish(request, FinishReason.ABORT)

    def finish(self, request: Request, reason: FinishReason) -> RequestUpdate:
        """Forget a request that is in no round and free its KV on both workers."""
        self._remove(request)
        return RequestUpdate(request, finish_reason=reason)

    def reconfigure(self, limits: SchedulerLimits) -> None:
        """Ask for other limits. They come into force with the first `settle` that finds no request
        seated; until then nobody is given a seat, and those who wait keep their places."""
        self._next_limits = limits

    @property
    def wanted_limits(self) -> SchedulerLimits:
        """Those asked for last; `limits` are in force."""
        return self._next_limits or self.limits

    def settle(self) -> bool:
        """Put the limits asked for into force if they can be, and restart the counters; True when that
        was done now. Round numbers and ids go on, for the workers remember them."""
        if self._next_limits is None or self.batches.num_requests:
            return False
        self.limits, self._next_limits = self._next_limits, None
        self.counters = SchedulerCounters()
        self.batches = BatchManager(self.limits.num_batches, self.limits.max_batch_size)
        return True

    # A round

    def plan(self, batch: Batch) -> RoundPlan | None:
        """Decide the batch's next round; None when it has nothing to do now."""
        if batch not in self.batches.batches:
            return None
        self._admit(batch)
        spans: list[PlannedSpan] = []
        verifier_budget = drafter_budget = self.limits.prefill_chunk
        for request in list(self.batches.members(batch)):
            if request.batch is not batch:  # preempted by a neighbour a moment ago
                continue
            span = self._plan_span(request, verifier_budget, drafter_budget)
            if span is None:
                continue
            request.in_round = True
            spans.append(span)
            drafter_budget -= span.num_prefill
            if span.num_tokens > 1:
                verifier_budget -= span.num_tokens
        if not spans:
            return None
        self._round_number += 1
        return RoundPlan(batch, self._round_number, tuple(spans), self.book)

    def assemble(self, plan: RoundPlan, proposals: Iterable[Proposal]) -> tuple[VerifySpan, ...]:
        """The verify command of a planned round, with the drafts that came for it.

        A proposal is matched by request id and committed length, never by position; one that does not
        match is counted and dropped, and its request decodes without drafts.
        """
        by_id = {span.request.id: span for span in plan.spans}
        matched: dict[int, Proposal] = {}
        for proposal in proposals:
            span = by_id.get(proposal.request_id)
            if span is None or proposal.committed_len != span.committed_len or len(proposal.tokens) > span.draft_len:
                self.counters.stale_proposals += 1
            else:
                matched[proposal.request_id] = proposal
        return tuple(
            to_verify_span(span, matched.get(span.request.id)) for span in plan.spans if not span.request.is_aborted
        )

    def commit(
        self, plan: RoundPlan, command: Sequence[VerifySpan], verdicts: Iterable[Verdict]
    ) -> list[RequestUpdate]:
        """Take a round's verdicts: grow the requests, end those that are done, free their KV.

        Args:
            command: what `assemble` returned.

        Raises:
            ProtocolError: a verdict is missing or does not continue its request.
        """
        verdict_of = {verdict.request_id: verdict for verdict in verdicts}
        span_of = {span.request_id: span for span in command}
        progress: list[RequestUpdate] = []
        self.counters.rounds[plan.batch] += 1
        for span in plan.spans:
            request = span.request
            request.in_round = False
            if request.is_aborted:
                progress.append(self.finish(request, FinishReason.ABORT))
                continue
            verdict, committed_len = verdict_of.get(request.id), request.verifier_len + span.num_tokens
            if verdict is None or verdict.committed_len != committed_len:
                raise ProtocolError(f"no verdict continues request {request.id} at {committed_len} tokens")
            progress.extend(self._commit_span(span, span_of[request.id], verdict))
        self._end_round(plan)
        return progress

    def abandon(self, plan: RoundPlan, culprit: int | None, error: MineDraftError) -> list[RequestUpdate]:
        """The verifier did not execute a round: end the request that it named, or all of the round if it
        named none, with `error`. The others have lost a round and nothing else."""
        progress: list[RequestUpdate] = []
        for span in plan.spans:
            request = span.request
            request.in_round = False
            if request.is_aborted:
                progress.append(self.finish(request, FinishReason.ABORT))
            elif culprit is None or request.id == culprit:
                self._remove(request)
                progress.append(RequestUpdate(request, error=error))
        self._end_round(plan)
        return progress

    # Inside

    def _end_round(self, plan: RoundPlan) -> None:
        """What waits for a round's end: evicted requests leave, and the batches are evened out."""
        for span in plan.spans:
            if span.request.must_leave and span.request.batch is not None:
                self._preempt(span.request)
        while self.batches.rebalance(plan.batch):
            pass

    def _check(self, new: NewRequest) -> None:
        prompt_len, limits = len(new.prompt_token_ids), self.limits
        if prompt_len == 0:
            raise InvalidRequest("prompt", "empty", "a prompt has at least one token")
        if prompt_len >= limits.max_model_len:
            raise InvalidRequest(
                "prompt", f"{prompt_len} tokens", f"at most {limits.max_model_len - 1} fit the context beside an answer"
            )
        total_len = prompt_len + new.sampling.output_limit
        if total_len > limits.max_model_len:
            raise InvalidRequest(
                "max_new_tokens",
                new.sampling.output_limit,
                f"at most {limits.max_model_len - prompt_len} fit after a prompt of {prompt_len} tokens "
                f"(context {limits.max_model_len})",
            )
        if not self.verifier_kv.fits(total_len):
            raise InvalidRequest(
                "max_new_tokens",
                new.sampling.output_limit,
                f"prompt ({prompt_len} tokens) and output must fit the verifier's KV memory of "
                f"{self.verifier_kv.capacity} tokens",
            )

    def _admit(self, next_drafted: Batch) -> None:
        while self.waiting and self.batches.has_seat() and self._next_limits is None:
            request = self.waiting[0]
            if self.verifier_kv.is_leaving(request.id):
                return
            # Room for all of it now, and for every elder's next round besides: a request let in on less
            # would be evicted by them at once, and let in again, for ever.
            headroom = self.batches.num_requests * self.verifier_kv.pool.num_blocks_for(self.limits.draft_len + 1)
            if not self.verifier_kv.can_reserve(request.id, len(request.tokens), headroom):
                return
            self.waiting.popleft()
            self.verifier_kv.reserve(request.id, len(request.tokens))
            self.batches.join(request, next_drafted)
            self._num_admitted += 1
            self._admission.setdefault(request.id, self._num_admitted)

    def _plan_span(self, request: Request, verifier_budget: int, drafter_budget: int) -> PlannedSpan | None:
        """What the round does for one request, with KV reserved; None when it must sit this round out."""
        committed_len = len(request.tokens)
        missing = committed_len - request.verifier_len
        num_tokens = min(missing, verifier_budget) if missing > 1 else 1
        if num_tokens <= 0:
            return None
        end = request.verifier_len + num_tokens
        draft_len = self._draft_len(request) if num_tokens == missing else 0
        if not self.verifier_kv.can_reserve(request.id, end + draft_len):
            draft_len = 0
            if not self._make_room(request, end):
                return None
        self.verifier_kv.reserve(request.id, end + draft_len)
        draft = prefill = None
        if self.book is not None and draft_len:
            draft = self.book.plan_draft(request, draft_len)
        elif self.book is not None and (num_prefill := self._prefill_len(request, drafter_budget)):
            prefill = self.book.plan_prefill(request, num_prefill)
        return PlannedSpan(request, committed_len, num_tokens, num_tokens == missing, draft, prefill)

    def _draft_len(self, request: Request) -> int:
        """Drafts to ask for: fewer near a limit, for the bonus token takes one place."""
        if self.book is None or not self.limits.draft_len:
            return 0
        room = min(request.remaining_len, self.limits.max_model_len - len(request.tokens)) - 1
        return self.book.draft_len(request, min(self.limits.draft_len, room))

    def _prefill_len(self, request: Request, budget: int) -> int:
        """Committed tokens the drafter should cache meanwhile; none where no draft will follow."""
        if self.book is None or not self.limits.draft_len or request.remaining_len <= 1:
            return 0
        return self.book.prefill_len(request, budget)

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Evict the youngest requests until `num_tokens` will fit; they are recomputed later.

        Blocks on their way out count as room to come, but cannot be used before the worker has
        acknowledged, so the request mostly sits this round out. One in flight in the other batch is
        marked and leaves with its round.
        """
        while not self._will_fit(request, num_tokens):
            candidates = [r for b in self.batches.batches for r in self.batches.members(b) if not r.must_leave]
            victim = max(candidates, key=lambda r: self._admission[r.id])
            if victim.in_round:
                victim.must_leave = True
            else:
                self._preempt(victim)
            if victim is request:
                return False
        return self.verifier_kv.can_reserve(request.id, num_tokens)

    def _will_fit(self, request: Request, num_tokens: int) -> bool:
        leaving = [r.id for b in self.batches.batches for r in self.batches.members(b) if r.must_leave]
        return self.verifier_kv.will_fit(request.id, num_tokens, leaving)

    def _preempt(self, request: Request) -> None:
        self.batches.leave(request)
        self.verifier_kv.release(request.id)
        if self.book is not None:
            self.book.release(request.id)
        request.must_leave = False
        request.verifier_len = 0
        request.num_preemptions += 1
        self.counters.preemptions += 1
        self.waiting.appendleft(request)

    def _commit_span(self, span: PlannedSpan, command: VerifySpan, verdict: Verdict) -> Iterable[RequestUpdate]:
        request = span.request
        if verdict.error:
            self._remove(request)
            message = f"the target's logits are not finite after {span.committed_len} tokens"
            yield RequestUpdate(request, error=NumericError(message))
            return
        request.verifier_len += span.num_tokens
        if not span.sample:
            return
        num_drafts = len(command.drafts)
        if span.draft is not None and self.book is not None:
            self.book.accepted(request.id, span.committed_len, num_drafts, verdict.accepted_len)
        request.verifier_len += verdict.accepted_len
        request.num_rounds += 1
        request.num_drafted += num_drafts
        request.num_accepted += verdict.accepted_len
        self.counters.verified_drafts += num_drafts
        self.counters.accepted_drafts += verdict.accepted_len
        self.counters.drafted_rows += num_drafts > 0
        token_ids, reason = truncate_output(verdict.tokens, request)
        request.tokens.extend(token_ids)
        self.counters.output_tokens += len(token_ids)
        if reason is not None:
            self._remove(request)
        yield RequestUpdate(request, token_ids, verdict.logprobs[: len(token_ids)], reason)

    def _remove(self, request: Request) -> None:
        if request.batch is None:
            self.waiting.remove(request)
        else:
            self.batches.leave(request)
        self.verifier_kv.release(request.id)
        if self.book is not None:
            self.book.forget(request.id)
        del self.requests[request.id]
        self._admission.pop(request.id, None)
        self.counters.finished += 1
