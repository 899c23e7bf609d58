"""The values that cross a boundary between scheduler and workers. Standard library only.

Glossary (the same words everywhere):

* *target* / *draft model*: the model whose output is served / the small one that proposes tokens.
* *verifier* / *drafter*: the worker processes that run them. *slot*: the place of a worker in the
  pipeline, empty while the worker is lost.
* *committed tokens*: prompt + accepted output, the only truth about a request. *bonus token*: the token
  the target adds after the accepted drafts.
* *batch*: the requests that share rounds, A or B. *seat*: the place of one request in a batch.
* *round*: one draft + one verify of one batch. *lane*: the task that takes one batch from round to
  round. *step*: the time from one committed round to the next, whichever batch they are of.
* a round *follows* another one of its batch: it is sent before the other has ended, and starts from its tokens.
* *span*: one request's part of a round, a command or a forward. *prefix length*: the number of leading
  committed tokens a worker's KV holds.
* *introduce* a request: send a worker its first span, with prefix length 0 and the `SequenceSpec`.
  *release* a request: tell a worker to free its KV and forget it.
* *observer*: a function that takes every event. *policy*: an object that makes one kind of decision.

A request sampled `n` times is `n` requests here, each with its own id.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from minedraft.errors import InvalidRequest
from minedraft.sampling_params import SamplingParams

PROTOCOL_VERSION = 4
MAX_SPANS = 1024  # requests in one worker command
MAX_SPAN_DRAFTS = 64  # draft tokens that one span of a worker command can carry
MAX_TOP_M = 1024  # entries of a truncated draft distribution
MAX_BATCH_SIZE = 256  # the largest m that a service can be set to
MAX_DRAFT_LEN = 16  # the largest k that a service can be set to


class Batch(IntEnum):
    """The two batches; a request has a seat in at most one."""

    A = 0
    B = 1

    @property
    def other(self) -> Batch:
        return Batch(1 - self)


class Mode(str, Enum):
    """How drafting and verifying alternate; `AR` is `SD` with draft_len 0, `SD` is one batch."""

    AR = "ar"
    SD = "sd"
    MINEDRAFT = "minedraft"

    @property
    def num_batches(self) -> int:
        return 2 if self is Mode.MINEDRAFT else 1

    @property
    def has_drafts(self) -> bool:
        return self is not Mode.AR


class DraftMethod(str, Enum):
    """Where drafts come from: a draft model, or n-grams of the request's own text (no model, no KV)."""

    MODEL = "model"
    NGRAM = "ngram"


@dataclass(frozen=True, slots=True)
class LoanTerms:
    """What a client that borrows the service sets: mode, requests per batch (m), drafts per request (k)."""

    mode: Mode
    max_batch_size: int
    draft_len: int

    @classmethod
    def check(cls, mode: object, max_batch_size: object, draft_len: object) -> LoanTerms:
        """Return the terms. Raise InvalidRequest for an unknown mode or a size out of range."""
        modes = [mode.value for mode in Mode]
        if mode not in modes:
            raise InvalidRequest("mode", mode, f"one of {', '.join(modes)}")
        m = _check_int("max_batch_size", max_batch_size, 1, MAX_BATCH_SIZE)
        return cls(Mode(mode), m, _check_int("draft_len", draft_len, 0, MAX_DRAFT_LEN))


class Role(str, Enum):
    """The role of a worker process."""

    DRAFTER = "drafter"
    VERIFIER = "verifier"


class Acceptance(IntEnum):
    """How drafts are accepted: by exact match with the target's own choice (`GREEDY`, and `COUPLED`
    where both sides share Gumbel noise, Daliri et al. 2024), or by `REJECTION` sampling (Leviathan
    et al. 2023)."""

    GREEDY = 1
    COUPLED = 2
    REJECTION = 3


class FinishReason(str, Enum):
    """The reason why an answer ended."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_new_tokens or the context limit
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class RoundId:
    """The name of one round of one batch in one epoch of a worker, which executes each command of it at most once."""

    epoch: int
    batch: Batch
    number: int


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """What a worker must know of a request besides its tokens; sent when the request is introduced,
    kept by the worker until the request is released.

    Attributes:
        prompt_len: tokens before this index are prompt (penalties count output only).
        seed: 0..2**63-1, key of the counter-based randomness.
        stop_ids: token ids masked out until `min_new_tokens` output tokens exist (EOS included
            unless ignored).
    """

    sampling: SamplingParams
    prompt_len: int
    seed: int
    acceptance: Acceptance
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A small dense array in a message, made by a token channel; little-endian, C order.

    dtype is one of "int32", "float32"; len(data) == prod(shape) * 4.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class TruncatedQ:
    """The renormalised top-m draft distribution that each draft token was sampled from.

    ids: int32 [draft_len, m], -1 pads; probs: float32 [draft_len, m], each row sums to 1.
    """

    ids: Tensor
    probs: Tensor


@dataclass(frozen=True, slots=True)
class DraftSpan:
    """The span of a draft (or drafter prefill) command.

    The drafter keeps the first `prefix_len` KV entries, appends `tokens` (committed, not cached yet,
    at least one), then proposes `draft_len` tokens (0 = only cache the tokens).
    """

    request_id: int
    prefix_len: int
    tokens: tuple[int, ...]
    draft_len: int
    spec: SequenceSpec | None = None


@dataclass(frozen=True, slots=True)
class DraftCommand:
    round: RoundId
    spans: tuple[DraftSpan, ...]
    released: tuple[int, ...] = ()  # request ids whose KV is freed first; unknown ids are ignored


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens for one request, which follow its first `committed_len` committed tokens
    (span.prefix_len + len(span.tokens)).

    `q` is set only under REJECTION acceptance.
    """

    request_id: int
    committed_len: int
    tokens: tuple[int, ...]
    q: TruncatedQ | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one command, measured in the worker, in nanoseconds.

    start_ns is a moment on the worker's monotonic clock; the link converts it to the scheduler's clock
    (`WorkerInfo.clock_offset_ns`). Its resolution is a microsecond, that of the others a nanosecond.
    """

    queue_ns: int = 0  # command received -> taken by the device thread
    forward_ns: int = 0  # model forward passes only, on the clock of their device
    busy_ns: int = 0  # command taken -> reply ready, and the device done
    idle_ns: int = 0  # device thread idle before it took this command
    start_ns: int = 0  # when the device thread took this command


@dataclass(slots=True)
class LinkStats:
    """The traffic of a worker's link so far.

    wire_bytes: serialised messages, both ways. num_stale: commands and replies dropped because they
    belong to another round or epoch.
    """

    wire_bytes: int = 0
    num_stale: int = 0


@dataclass(frozen=True, slots=True)
class DraftReply:
    round: RoundId
    proposals: tuple[Proposal, ...]
    timing: Timing
    num_free_blocks: int


@dataclass(frozen=True, slots=True)
class VerifySpan:
    """The span of a verify command.

    The verifier keeps the first `prefix_len` KV entries, appends `tokens` (committed, not cached
    yet, at least one) and `drafts`. With `sample` it returns accepted drafts and the bonus token;
    without (an inner prompt chunk) it only caches.

    A span that `follows` has no tokens: its one token is the bonus token of the request in the verifier's last
    round, which the scheduler does not know yet. If there is none, the verdict is STALE_ROUND and nothing changes.
    """

    request_id: int
    prefix_len: int
    tokens: tuple[int, ...]
    drafts: tuple[int, ...] = ()
    q: TruncatedQ | None = None
    sample: bool = True
    spec: SequenceSpec | None = None
    follows: bool = False

    @property
    def committed_len(self) -> int:
        """The number of committed tokens that the verifier holds afterwards."""
        return self.prefix_len + (1 if self.follows else len(self.tokens))


@dataclass(frozen=True, slots=True)
class VerifyCommand:
    round: RoundId
    spans: tuple[VerifySpan, ...]
    released: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of the target's raw distribution at one output position: no penalties, bias or
    temperature."""

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The target's decision for one request.

    tokens: the `accepted_len` accepted drafts followed by exactly one bonus (or replacement) token;
    empty if the span did not sample or `error` is set. committed_len: number of committed tokens before
    `tokens`. error: "" or a reason of minedraft.errors: NUMERIC, or STALE_ROUND for a span that follows a round
    without a token for it.
    """

    request_id: int
    committed_len: int
    accepted_len: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class VerifyReply:
    round: RoundId
    verdicts: tuple[Verdict, ...]
    timing: Timing
    num_free_blocks: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's answer to the handshake, which also starts a new epoch: all KV dropped, stored replies
    forgotten, `epoch` different from every earlier one."""

    role: Role
    epoch: int
    protocol_version: int
    vocab_size: int  # ids below this can appear in tokens
    vocab_fingerprint: str  # sha256 over (id, token) pairs of the tokenizer
    num_blocks: int  # of KV; 0: the worker holds no KV, so it never runs out (drafter only)
    block_size: int  # tokens per block
    max_model_len: int  # tokens per sequence
    model_name: str
    device: str
    dtype: str
    draft_method: DraftMethod | None = None  # drafter only
    kernels: str = ""  # what computes a forward pass, as "native avx512_bf16"; "" without a model
    is_batch_invariant: bool = False  # a row's logits are the same bits whatever else is in the forward
    weights_bytes: int = 0
    clock_offset_ns: int = 0  # scheduler's clock less the worker's; measured by the link, not sent


def _check_int(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(name, value, f"must be an integer in [{low}, {high}]")
    return value
