"""One round of one batch: the plan, and the worker commands made from it. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minedraft.core.draft_book import DraftBook
from minedraft.core.request import Request
from minedraft.types import Batch, DraftSpan, FinishReason, Proposal, VerifySpan


@dataclass(frozen=True, slots=True)
class PlannedSpan:
    """One request's part of a round: `num_tokens` committed tokens to cache in the verifier, and for
    the drafter either a draft or committed tokens to cache."""

    request: Request
    committed_len: int
    num_tokens: int
    sample: bool  # the verifier will hold the whole prefix, so it says what follows
    draft: DraftSpan | None = None
    prefill: DraftSpan | None = None

    @property
    def draft_len(self) -> int:
        return 0 if self.draft is None else self.draft.draft_len

    @property
    def num_prefill(self) -> int:
        return 0 if self.prefill is None else len(self.prefill.tokens)


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What one round of one batch will do. `drafts` go to the drafter before the verify, `prefills`
    (prompts the verifier is caching in this very round) while it runs. `book` is of the drafter that
    they are for: another one would not know these requests."""

    batch: Batch
    number: int
    spans: tuple[PlannedSpan, ...]
    book: DraftBook | None

    @property
    def drafts(self) -> tuple[DraftSpan, ...]:
        return tuple(span.draft for span in self.spans if span.draft is not None)

    @property
    def prefills(self) -> tuple[DraftSpan, ...]:
        return tuple(span.prefill for span in self.spans if span.prefill is not None)


def truncate_output(tokens: Sequence[int], request: Request) -> tuple[tuple[int, ...], FinishReason | None]:
    """Output tokens up to the first stop id (kept, as `generate` does) or the length limit."""
    for index, token in enumerate(tokens[: request.remaining_len]):
        if token in request.spec.stop_ids:
            return tuple(tokens[: index + 1]), FinishReason.STOP
    reason = FinishReason.LENGTH if len(tokens) >= request.remaining_len else None
    return tuple(tokens[: request.remaining_len]), reason


def to_verify_span(span: PlannedSpan, proposal: Proposal | None) -> VerifySpan:
    request = span.request
    return VerifySpan(
        request_id=request.id,
        prefix_len=request.verifier_len,
        tokens=tuple(request.tokens[request.verifier_len : request.verifier_len + span.num_tokens]),
        drafts=proposal.tokens if proposal is not None else (),
        q=proposal.q if proposal is not None else None,
        sample=span.sample,
        spec=request.spec if request.verifier_len == 0 else None,
    )
