"""The values that cross a boundary between scheduler and workers. Standard library only.

Glossary (the same words everywhere): *target* / *draft model*; *verifier* / *drafter* are the
processes that run them; *committed tokens* = prompt + accepted output, the only truth about a
request; *round* = one draft + one verify of one batch; *prefix length* = the number of leading
committed tokens a worker's KV holds; *bonus token* = the token the target adds after the accepted
drafts. A request sampled `n` times is `n` requests here, each with its own id.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from minedraft.errors import InvalidRequest
from minedraft.sampling_params import SamplingParams

PROTOCOL_VERSION = 3
MAX_SPANS = 1024  # requests in one worker command
MAX_SPAN_DRAFTS = 64  # draft tokens that one span of a worker command can carry
MAX_TOP_M = 1024  # entries of a truncated draft distribution
MAX_BATCH_SIZE = 256  # the largest m that a service can be set to
MAX_DRAFT_LEN = 16  # the largest k that a service can be set to


class Batch(IntEnum):
    """The two batch queues; a request is in exactly one at a time."""

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
    """What a client that has borrowed the service sets: mode, requests a batch (m), drafts a request (k)."""

    mode: Mode
    max_batch_size: int
    draft_len: int

    @classmethod
    def check(cls, mode: object, max_batch_size: object, draft_len: object) -> LoanTerms:
        """Raises InvalidRequest: an unknown mode, or a size out of range."""
        modes = [mode.value for mode in Mode]
        if mode not in modes:
            raise InvalidRequest("mode", mode, f"one of {', '.join(modes)}")
        m = _check_int("max_batch_size", max_batch_size, 1, MAX_BATCH_SIZE)
        return cls(Mode(mode), m, _check_int("draft_len", draft_len, 0, MAX_DRAFT_LEN))


class Role(str, Enum):
    """Which worker a process is."""

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
    """Why an answer ended."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_new_tokens or the context limit
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class RoundId:
    """Names one command of one worker incarnation; a worker executes each at most once."""

    epoch: int
    batch: Batch
    number: int


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """What a worker must know of a request besides its tokens; sent when the request is introduced
    to a worker (prefix length 0), kept there until released.

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
    """A small dense array on its way through a token channel, little-endian, C order.

    dtype is one of "int32", "float32"; len(data) == prod(shape) * 4.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class TruncatedQ:
    """The renormalised top-m draft distribution each draft token was sampled from.

    ids: int32 [draft_len, m], -1 pads; probs: float32 [draft_len, m], each row sums to 1.
    """

    ids: Tensor
    probs: Tensor


@dataclass(frozen=True, slots=True)
class DraftSpan:
    """One request's part of a draft (or drafter prefill) command.

    The drafter keeps the first `prefix_len` KV entries, appends `tokens` (committed tokens it has
    not cached yet, at least one), then proposes `draft_len` tokens (0 = only cache the tokens).
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
    """Draft tokens for one request, starting right after `committed_len` committed tokens: all that
    the drafter has of the request (span.prefix_len + len(span.tokens)).

    `q` is there only under REJECTION acceptance.
    """

    request_id: int
    committed_len: int
    tokens: tuple[int, ...]
    q: TruncatedQ | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Measured inside the worker, in nanoseconds.

    start_ns is a moment: on the worker's monotonic clock in its reply, on the scheduler's once its link has
    received it (`WorkerInfo.clock_offset_ns`). It is exact to a microsecond, the others to a nanosecond.
    """

    queue_ns: int = 0  # command received -> taken by the device thread
    forward_ns: int = 0  # model forward passes only
    busy_ns: int = 0  # command taken -> reply ready
    idle_ns: int = 0  # device thread idle before it took this command
    start_ns: int = 0  # when the device thread took it


@dataclass(slots=True)
class LinkStats:
    """What has gone over a worker's link so far.

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
    """One request's part of a verify command.

    The verifier keeps the first `prefix_len` KV entries, appends `tokens` (committed, not cached
    yet, at least one) and `drafts`. With `sample` it returns accepted drafts and the bonus token;
    without (an inner prompt chunk) it only caches.
    """

    request_id: int
    prefix_len: int
    tokens: tuple[int, ...]
    drafts: tuple[int, ...] = ()
    q: TruncatedQ | None = None
    sample: bool = True
    spec: SequenceSpec | None = None


@dataclass(frozen=True, slots=True)
class VerifyCommand:
    round: RoundId
    spans: tuple[VerifySpan, ...]
    released: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Target log-probabilities at one output position: after penalties, bias and temperature have
    been left out (the raw model distribution)."""

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The target's decision for one request.

    tokens: the `accepted_len` accepted drafts followed by exactly one bonus (or replacement) token;
    empty when the span did not sample or `error` is set. committed_len: committed tokens that they
    continue. error: "" or a reason of minedraft.errors (NUMERIC).
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
    """What a worker says of itself in the handshake, which also starts a new epoch: all KV dropped,
    stored replies forgotten, `epoch` different from every earlier one."""

    role: Role
    epoch: int
    protocol_version: int
    vocab_size: int  # ids below this can appear in tokens
    vocab_fingerprint: str  # sha256 over (id, token) pairs of the tokenizer
    num_blocks: int  # 0: it holds no KV, so nothing runs out (a drafter only)
    block_size: int  # tokens a block
    max_model_len: int  # tokens a sequence
    model_name: str
    device: str
    dtype: str
    draft_method: DraftMethod | None = None  # drafter only
    weights_bytes: int = 0
    clock_offset_ns: int = 0  # add it to a moment on the worker's clock; measured by the link, not sent


def _check_int(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(name, value, f"must be an integer in [{low}, {high}]")
    return value
