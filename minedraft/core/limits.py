"""The limits of the scheduler: mode, sizes, lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minedraft.core.events import ModeChanged
from minedraft.core.ledger import KvLedger
from minedraft.core.request import NewRequest, Request
from minedraft.errors import InternalError, InvalidRequest, ReplaysExhausted
from minedraft.types import BRANCHES, LoanTerms, Mode, ScoreKind

RETRY_AFTER_LOSS_S = 5.0
"""When to send a request again that ended because the verifier was lost: it may be back by then."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The settings that scheduling needs.

    Attributes:
        mode: in `ar`, draft_len is always 0.
        max_batch_size: requests per batch (m).
        draft_len: maximum tokens proposed per request and round (k), but for the extra ones.
        branches: maximum branches of a request that are prepared while its drafts are verified; in `pearl` only.
        prefill_chunk: maximum prompt tokens per round and worker.
        max_waiting: maximum requests that wait, beyond the seats.
        max_waiting_tokens: maximum tokens of the requests that wait; one that waits alone may have more.
        max_model_len: maximum tokens of a request, prompt and answer together.
        is_lent: whether a borrower of the service sets mode and sizes, and no policy may deviate from them.
        extra_drafts: tokens proposed beyond `draft_len`, for the draft policy to choose from.
        scores: what the drafter says of its drafts, for the draft policy.
        max_replays: times that a request is recomputed because the verifier was lost in a round of it, the last time
            alone.
        keep_cores: whether a borrower wants each worker to compute on its own cores only.
        max_steps: maximum decode steps of one verify command, in `ar` only; None: as `policy/steps.py` says.
    """

    mode: Mode = Mode.MINEDRAFT
    max_batch_size: int = 8
    draft_len: int = 3
    prefill_chunk: int = 256
    max_waiting: int = 256
    max_model_len: int = 8192
    branches: int = BRANCHES
    is_lent: bool = False
    extra_drafts: int = 0
    scores: ScoreKind = ScoreKind.NONE
    max_waiting_tokens: int = 1 << 18
    max_replays: int = 2
    keep_cores: bool = False
    max_steps: int | None = 1

    def __post_init__(self) -> None:
        if not self.mode.has_drafts:
            object.__setattr__(self, "draft_len", 0)  # the dataclass is frozen

    @property
    def max_draft_len(self) -> int:
        """Maximum tokens proposed per request and round, the extra ones too."""
        return self.draft_len + self.extra_drafts if self.draft_len else 0

    @property
    def num_batches(self) -> int:
        return self.mode.num_batches

    @property
    def num_branches(self) -> int:
        """Branches to prepare in the present mode."""
        return self.branches if self.mode.runs_ahead and self.draft_len else 0

    @property
    def terms(self) -> LoanTerms:
        """The limits that can change while requests are live."""
        return LoanTerms(self.mode, self.max_batch_size, self.draft_len, self.branches)

    def with_terms(self, terms: LoanTerms) -> SchedulerLimits:
        """Return these limits with the terms that a mode policy sets."""
        branches = terms.branches or self.branches
        return replace(
            self,
            mode=terms.mode,
            max_batch_size=terms.max_batch_size,
            draft_len=terms.draft_len,
            branches=branches,
        )

    def lent(self, terms: LoanTerms) -> SchedulerLimits:
        """Return these limits with the terms that a borrower of the service sets."""
        return replace(self.with_terms(terms), is_lent=True, keep_cores=terms.keep_cores)

    def changed(self, why: str) -> ModeChanged:
        """Return the event that says that these limits are in force."""
        return ModeChanged(self.mode, self.max_batch_size, self.draft_len, why, self.is_lent, self.keep_cores)


def check_request(new: NewRequest, limits: SchedulerLimits, verifier_kv: KvLedger) -> None:
    """Raise InvalidRequest unless the request has a prompt and fits both the context and the verifier's KV cache."""
    prompt_len, output_limit = len(new.prompt_token_ids), new.sampling.output_limit
    if prompt_len == 0:
        raise InvalidRequest("prompt", "empty", "must have at least one token")
    if prompt_len >= limits.max_model_len:
        limit = f"at most {limits.max_model_len - 1} fit in the context, with room for an answer"
        raise InvalidRequest("prompt", f"{prompt_len} tokens", limit)
    total_len = prompt_len + output_limit
    if total_len > limits.max_model_len:
        limit = (
            f"at most {limits.max_model_len - prompt_len} fit after a prompt of {prompt_len} tokens "
            f"(context {limits.max_model_len})"
        )
        raise InvalidRequest("max_new_tokens", output_limit, limit)
    if not verifier_kv.fits(total_len):
        limit = f"the verifier's KV cache holds {verifier_kv.capacity} tokens, the prompt needs {prompt_len}"
        raise InvalidRequest("max_new_tokens", output_limit, limit)


def check_replays(request: Request, limits: SchedulerLimits) -> ReplaysExhausted | None:
    """Return an error if the verifier was lost in rounds of a request more often than the limits allow."""
    if request.num_replays <= limits.max_replays:
        return None
    what = f"the verifier was lost {request.num_replays} times while it computed this request"
    if limits.max_replays:
        what += ", the last time this one alone"
    return ReplaysExhausted(f"{what}, the limit is max_replays {limits.max_replays}", RETRY_AFTER_LOSS_S)


def check_successor_memory(request: Request, verifier_kv: KvLedger) -> InternalError | None:
    """Return an error if the memory of a verifier that came back can never hold a request."""
    total_len = request.spec.prompt_len + request.spec.sampling.output_limit
    if verifier_kv.fits(total_len):
        return None
    limit = f"the verifier that came back holds {verifier_kv.capacity} tokens"
    return InternalError(f"{limit}, the request may need {total_len}")
