"""What bounds the scheduler: mode, sizes, lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minedraft.core.ledger import KvLedger
from minedraft.core.request import NewRequest
from minedraft.errors import InvalidRequest
from minedraft.types import LoanTerms, Mode


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The settings that scheduling needs.

    Attributes:
        mode: in `ar`, draft_len is 0 whatever was given.
        max_batch_size: requests in each batch (m).
        draft_len: tokens proposed per request and round, at most (k).
        prefill_chunk: prompt tokens a round may carry beside decoding requests, per worker.
        max_waiting: requests queued beyond the seats.
        max_model_len: tokens a request may have, prompt and answer together.
    """

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

    @property
    def terms(self) -> LoanTerms:
        """What of these limits can change while requests are live."""
        return LoanTerms(self.mode, self.max_batch_size, self.draft_len)

    def lent(self, terms: LoanTerms) -> SchedulerLimits:
        """These limits, with what a borrower of the service or a mode policy sets."""
        return replace(self, mode=terms.mode, max_batch_size=terms.max_batch_size, draft_len=terms.draft_len)


def check_request(new: NewRequest, limits: SchedulerLimits, verifier_kv: KvLedger) -> None:
    """Raise InvalidRequest where a request could never run: no prompt, or longer than context or memory."""
    prompt_len, output_limit = len(new.prompt_token_ids), new.sampling.output_limit
    if prompt_len == 0:
        raise InvalidRequest("prompt", "empty", "a prompt has at least one token")
    if prompt_len >= limits.max_model_len:
        limit = f"at most {limits.max_model_len - 1} fit the context beside an answer"
        raise InvalidRequest("prompt", f"{prompt_len} tokens", limit)
    total_len = prompt_len + output_limit
    if total_len > limits.max_model_len:
        limit = (
            f"at most {limits.max_model_len - prompt_len} fit after a prompt of {prompt_len} tokens "
            f"(context {limits.max_model_len})"
        )
        raise InvalidRequest("max_new_tokens", output_limit, limit)
    if not verifier_kv.fits(total_len):
        limit = (
            f"prompt ({prompt_len} tokens) and output must fit the verifier's KV memory of "
            f"{verifier_kv.capacity} tokens"
        )
        raise InvalidRequest("max_new_tokens", output_limit, limit)
