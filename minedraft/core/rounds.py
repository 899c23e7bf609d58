"""One round of one batch: its plan, the spans of the commands made from it, and the tally of its verdicts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from minedraft.core.draft_book import DraftBook
from minedraft.core.events import RoundCommitted
from minedraft.core.ledger import KvLedger
from minedraft.core.request import Request, RequestUpdate
from minedraft.messages import DraftSpan, Proposal, Tensor, TruncatedQ, Verdict, VerifySpan
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import Batch, DraftMethod, FinishReason


@dataclass(frozen=True, slots=True)
class PlannedSpan:
    """The span of a round: `num_tokens` committed tokens to cache in the verifier, and for the drafter
    either a draft or committed tokens to cache; unless its drafts are ready. During the verify the drafter prepares up
    to `ahead_len` drafts for the round after it."""

    request: Request
    committed_len: int
    num_tokens: int
    sample: bool  # the verifier will hold all committed tokens, so it samples what follows
    draft: DraftSpan | None = None
    prefill: DraftSpan | None = None
    wants_features: bool = False  # the drafter will need those of the tokens that the verifier caches
    follows: bool = False  # its token is the bonus token of the request's round before, which has not ended
    ready: Proposal | None = None
    ahead_len: int = 0
    num_forced: int = 0  # the last of its tokens that the grammar forced in the round before
    num_steps: int = 1  # tokens to sample, one after the other; more than one only in a round without drafts

    @property
    def num_open(self) -> int:
        """Output tokens that the request may still have after a round that this one follows, and before this one."""
        return self.request.remaining_len - (self.committed_len - len(self.request.tokens))

    @property
    def draft_len(self) -> int:
        if self.ready is not None:
            return len(self.ready.tokens)
        return 0 if self.draft is None else self.draft.draft_len

    @property
    def num_prefill(self) -> int:
        return 0 if self.prefill is None else len(self.prefill.tokens)


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The plan of one round of one batch.

    Attributes:
        drafts: spans for the drafter, before the verify.
        prefills: spans for the drafter during the verify: committed tokens that it lacks.
        verifier_kv, book: those of the verifier and the drafter that the round is for; no other worker
            knows its requests.
        num_branches: how many branches of each request a run ahead may prepare; 0: the drafter does not run ahead.
    """

    batch: Batch
    number: int
    spans: tuple[PlannedSpan, ...]
    drafts: tuple[DraftSpan, ...]
    prefills: tuple[DraftSpan, ...]
    verifier_kv: KvLedger
    book: DraftBook | None
    num_branches: int = 0

    @classmethod
    def of(
        cls,
        batch: Batch,
        number: int,
        spans: Sequence[PlannedSpan],
        verifier_kv: KvLedger,
        book: DraftBook | None,
        num_branches: int = 0,
    ) -> RoundPlan:
        drafts = tuple([span.draft for span in spans if span.draft is not None])
        prefills = tuple([span.prefill for span in spans if span.prefill is not None])
        num_branches = num_branches if any(span.ahead_len for span in spans) else 0
        return cls(batch, number, tuple(spans), drafts, prefills, verifier_kv, book, num_branches)

    @property
    def ready(self) -> tuple[Proposal, ...]:
        """The drafts that were prepared during the round before."""
        return tuple([span.ready for span in self.spans if span.ready is not None])

    @property
    def follows(self) -> bool:
        """Whether the round starts from tokens of one that had not ended when it was planned."""
        return self.spans[0].follows

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The layers of the target whose outputs the round's spans want; none if no span wants features."""
        wants_any = self.book is not None and any(span.wants_features for span in self.spans)
        return self.book.feature_layers if self.book is not None and wants_any else ()

    @property
    def is_prefill(self) -> bool:
        """Whether the round carries prompt tokens, for either worker."""
        if self.prefills or any(span.num_tokens > span.num_forced + 1 for span in self.spans):
            return True
        # A drafter that reads features takes a prompt with the first draft after it.
        return any(len(draft.tokens) > MAX_DRAFT_LEN + 1 for draft in self.drafts)


class RoundTally:
    """The verdicts of a round, taken one by one before they change their requests.

    Args:
        book: that of the present drafter, which may be another one than the round was planned with.
    """

    def __init__(self, plan: RoundPlan, book: DraftBook | None) -> None:
        self._plan = plan
        self._book = book
        self._accepted: list[tuple[int, int]] = []
        self._sources: list[DraftMethod] = []
        self._runs: list[tuple[int, bool]] = []

    def take(self, span: PlannedSpan, sent: VerifySpan, verdict: Verdict) -> None:
        """Take the verdict on a request's span, for which `sent` was sent."""
        if sent.drafts and not verdict.error:
            self._accepted.append((len(sent.drafts), verdict.accepted_len))
            self._sources.append(sent.source)
        if self._plan.book is not None and verdict.features is not None:
            self._plan.book.deliver(span.request, verdict.features)
        if self._book is None or not verdict.tokens:
            return
        request_id, accepted_len = span.request.id, verdict.accepted_len
        came_true = self._book.judged(request_id, self._plan.number, accepted_len, verdict.bonus_token)
        if came_true is not None:
            self._runs.append((len(sent.drafts), came_true))
        elif span.draft_len:
            self._book.accepted(request_id, span.committed_len, accepted_len, 1 + verdict.num_forced)

    def event(self, updates: Sequence[RequestUpdate], num_active: int) -> RoundCommitted:
        """Return the event of the round, with what it did to its requests. num_active: batches that have requests."""
        grown = tuple([(update.request.id, len(update.token_ids)) for update in updates if update.token_ids])
        return RoundCommitted(
            self._plan.batch,
            self._plan.number,
            num_requests=len(self._plan.spans),
            num_output_tokens=sum([num_tokens for _, num_tokens in grown]),
            accepted=tuple(self._accepted),
            is_prefill=self._plan.is_prefill,
            num_active=num_active,
            sources=tuple(self._sources),
            runs=tuple(self._runs),
            grown=grown,
        )


def following_spans(plan: RoundPlan, members: Sequence[Request]) -> list[PlannedSpan]:
    """Return the spans of a round that follows `plan`: one more token for each request that goes on, whichever token
    the plan gives it. Return none if `members`, the requests of the batch, need more than that."""
    live = [span for span in plan.spans if span.request.batch is plan.batch]
    if len(live) != len(members):
        return []
    for span in live:
        if span.committed_len != len(span.request.tokens):  # the round that it follows was given up
            return []
        request = span.request
        if not span.sample or span.draft is not None or request.is_aborted or request.must_leave or request.is_paused:
            return []
        if request.may_be_forced:  # more tokens than one may be to cache
            return []
    going_on = [span for span in live if span.request.remaining_len > span.num_steps]
    return [
        PlannedSpan(span.request, span.committed_len + span.num_steps, 1, sample=True, follows=True)
        for span in going_on
    ]


def with_steps(spans: Sequence[PlannedSpan], most: int, kv: KvLedger) -> Sequence[PlannedSpan]:
    """Return the spans of a round with up to `most` steps, KV reserved: none of them ends before the others by its
    length. As they are if one of them cannot have more than one step, or not all of them fit."""
    if most <= 1 or not all(_can_step(span) for span in spans):
        return spans
    num_steps = min(most, min([span.num_open for span in spans]))
    for span in spans:
        num_cached = span.committed_len + num_steps - 1
        if not kv.can_reserve(span.request.id, num_cached):
            return spans
        kv.reserve(span.request.id, num_cached)
    return [replace(span, num_steps=num_steps) for span in spans]


def _can_step(span: PlannedSpan) -> bool:
    """Whether the verifier can go on from the token that it gives the span: it decodes, and nothing but that token is
    decided. A grammar may force more tokens than one, and the drafter needs the features of each."""
    has_more = span.draft_len or span.num_prefill or span.wants_features or span.ahead_len
    request = span.request
    is_decoding = span.sample and span.num_tokens == 1 and span.committed_len > request.spec.prompt_len
    return is_decoding and not has_more and request.spec.sampling.grammar is None and not request.is_aborted


def apply_verdict(span: PlannedSpan, num_drafts: int, verdict: Verdict) -> tuple[tuple[int, ...], FinishReason | None]:
    """Grow a request by the verdict on its span. Return its new tokens, and the reason if they end the output."""
    request = span.request
    request.verifier_len += span.num_tokens
    if not span.sample:
        return (), None
    request.verifier_len += verdict.cached_len - verdict.committed_len
    request.num_rounds += verdict.num_steps
    request.num_drafted += num_drafts
    request.num_accepted += verdict.accepted_len
    token_ids, reason = truncate_output(verdict.tokens, request)
    request.tokens.extend(token_ids)
    request.last_forced = max(len(token_ids) - verdict.accepted_len - verdict.num_steps, 0)
    request.num_forced += request.last_forced
    return token_ids, reason


def truncate_output(tokens: Sequence[int], request: Request) -> tuple[tuple[int, ...], FinishReason | None]:
    """Return the output tokens up to the first stop id (kept) or the length limit, and the reason if they end
    the output."""
    for index, token in enumerate(tokens[: request.remaining_len]):
        if token in request.spec.stop_ids:
            return tuple(tokens[: index + 1]), FinishReason.STOP
    reason = FinishReason.LENGTH if len(tokens) >= request.remaining_len else None
    return tuple(tokens[: request.remaining_len]), reason


def match_proposals(plan: RoundPlan, proposals: Iterable[Proposal]) -> tuple[list[Proposal], int]:
    """Return the proposals that continue a request of the round, matched by request id and committed length,
    and the number of other proposals."""
    span_of = {span.request.id: span for span in plan.spans}
    fitting: list[Proposal] = []
    num_others = 0
    for proposal in proposals:
        span = span_of.get(proposal.request_id)
        is_ours = span is not None and proposal.committed_len == span.committed_len
        if span is not None and is_ours and len(proposal.tokens) <= span.draft_len:
            fitting.append(proposal)
        else:
            num_others += 1
    return fitting, num_others


def shorten(proposal: Proposal, num_drafts: int) -> Proposal:
    """Return a proposal's first `num_drafts` drafts, with their rows of q."""
    if num_drafts >= len(proposal.tokens):
        return proposal
    q = proposal.q if num_drafts else None
    if q is not None:
        q = TruncatedQ(_first_rows(q.ids, num_drafts), _first_rows(q.probs, num_drafts))
    scores = proposal.scores[:num_drafts]
    return replace(proposal, tokens=proposal.tokens[:num_drafts], q=q, scores=scores)


def to_verify_span(span: PlannedSpan, proposal: Proposal | None) -> VerifySpan:
    """Return the verifier's span for one request: the tokens it has not cached, and the proposed drafts."""
    request = span.request
    if span.follows:
        return VerifySpan(request.id, span.committed_len - 1, (), follows=True, num_steps=span.num_steps)
    return VerifySpan(
        request_id=request.id,
        prefix_len=request.verifier_len,
        tokens=tuple(request.tokens[request.verifier_len : request.verifier_len + span.num_tokens]),
        drafts=proposal.tokens if proposal is not None else (),
        q=proposal.q if proposal is not None else None,
        sample=span.sample,
        spec=request.spec if request.verifier_len == 0 else None,
        wants_features=span.wants_features,
        source=proposal.source if proposal is not None else DraftMethod.MODEL,
        num_steps=span.num_steps,
    )


def _first_rows(tensor: Tensor, num_rows: int) -> Tensor:
    shape = (num_rows, *tensor.shape[1:])
    if tensor.reference is not None:  # the rows lie at the start of it
        return replace(tensor, shape=shape)
    row_bytes = len(tensor.data) // tensor.shape[0]
    return replace(tensor, shape=shape, data=tensor.data[: num_rows * row_bytes])
