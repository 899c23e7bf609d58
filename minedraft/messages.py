"""The commands that the scheduler sends to its workers, and their replies. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minedraft.carriers import Carrier, ChannelOffer
from minedraft.types import DraftMethod, Role, RoundId, ScoreKind, SequenceSpec

ITEM_BYTES = {"int32": 4, "float32": 4, "bfloat16": 2}
"""The dtypes of tensors in messages, and the bytes of one item."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TensorRef:
    """Where a tensor lies that is not in the message. It lies there until its sender is told that the lease is free.

    Attributes:
        segment: a number that the sender drew at random for the memory that it shares.
        offset: bytes from the start of the segment.
        generation: the number of the lease, which the sender never uses again.
        num_bytes: bytes that the lease holds; the tensor may be its first rows only.
    """

    carrier: Carrier
    segment: int
    offset: int
    generation: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A small dense array, made by a token channel; little-endian, C order.

    dtype is one of ITEM_BYTES. Either `data` holds all items, or `reference` says where they lie.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes = b""
    reference: TensorRef | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all items, wherever they lie."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class TruncatedQ:
    """The renormalised top-m draft distribution that each draft token was sampled from.

    ids: int32 [draft_len, m], -1 pads; probs: float32 [draft_len, m], each row sums to 1.
    """

    ids: Tensor
    probs: Tensor


@dataclass(frozen=True, slots=True)
class Features:
    """What the target computed inside for the tokens at positions `start` to `end` - 1 of a request: the outputs of the
    layers that the drafter named, side by side.

    states: float32 or bfloat16 [tokens, feature size]; the scheduler passes them on unread.
    """

    start: int
    states: Tensor

    @property
    def end(self) -> int:
        return self.start + self.states.shape[0]


@dataclass(frozen=True, slots=True)
class Branch:
    """A way in which the verify of a request's drafts may end: the first `accepted_len` of them are accepted, and
    `token` is the bonus token."""

    accepted_len: int
    token: int


@dataclass(frozen=True, slots=True)
class RunAhead:
    """What a span that runs ahead has besides: its last `num_drafts` tokens are drafts that are being verified, and
    it prepares at most `num_branches` branches, the first of which accepts them all."""

    num_drafts: int
    num_branches: int


@dataclass(frozen=True, slots=True)
class DraftSpan:
    """The span of a draft (or drafter prefill) command.

    The drafter keeps the first `prefix_len` KV entries, appends `tokens` (committed, not cached yet,
    at least one), then proposes `draft_len` tokens (0 = only cache the tokens).

    branch: which of the branches of the request's last span becomes the request, by its place in the reply; the
    others are forgotten. `prefix_len` counts KV entries of that one. 0: the first one, or there were none.
    ahead: the span runs ahead, so `draft_len` tokens are proposed after each branch.

    A drafter that reads features takes each token with the feature of the token before it, the first token of a
    request with none: so `prefix_len` tokens have `prefix_len` - 1 KV entries, and `features`, whose pieces follow or
    overlap each other, cover the positions `features_start` to `committed_len` - 2.
    """

    request_id: int
    prefix_len: int
    tokens: tuple[int, ...]
    draft_len: int
    spec: SequenceSpec | None = None
    features: tuple[Features, ...] = ()
    branch: int = 0
    ahead: RunAhead | None = None

    @property
    def committed_len(self) -> int:
        """The number of committed tokens that the drafter holds afterwards."""
        num_drafts = 0 if self.ahead is None else self.ahead.num_drafts
        return self.prefix_len + len(self.tokens) - num_drafts

    @property
    def features_start(self) -> int:
        """The first position whose feature the tokens need."""
        return max(self.prefix_len - 1, 0)


@dataclass(frozen=True, slots=True)
class DraftCommand:
    round: RoundId
    spans: tuple[DraftSpan, ...]
    released: tuple[int, ...] = ()  # request ids whose KV is freed first; unknown ids are ignored
    scores: ScoreKind = ScoreKind.NONE  # of the proposals that it asks for


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens for one request, which follow its first `committed_len` committed tokens.

    `q` is set only under REJECTION acceptance. `source` made them; of NGRAM, the drafter has cached no draft, of
    the others all but the last. `scores`: one of the kind that the command asks for, 0..1, for each draft, or none.
    `branch` is set in the reply to a span that runs ahead: the drafts follow the tokens that would be committed if the
    verify ended so, and `committed_len` counts these.
    """

    request_id: int
    committed_len: int
    tokens: tuple[int, ...]
    q: TruncatedQ | None = None
    source: DraftMethod = DraftMethod.MODEL
    scores: tuple[float, ...] = ()
    branch: Branch | None = None


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
    belong to another round or epoch. carrier: what large tensors from and to the worker travel by at present.
    num_open: commands that are sent and not answered.
    """

    wire_bytes: int = 0
    num_stale: int = 0
    carrier: Carrier = Carrier.INLINE
    num_open: int = 0


@dataclass(frozen=True, slots=True)
class DraftReply:
    """The answer to a draft command. num_not_finite: rows whose drafts ended at logits with NaN or Inf."""

    round: RoundId
    proposals: tuple[Proposal, ...]
    timing: Timing
    num_free_blocks: int
    num_not_finite: int = 0


@dataclass(frozen=True, slots=True)
class VerifySpan:
    """The span of a verify command.

    The verifier keeps the first `prefix_len` KV entries, appends `tokens` (committed, not cached
    yet, at least one) and `drafts`. With `sample` it returns accepted drafts and the bonus token;
    without (an inner prompt chunk) it only caches.

    A span that `follows` has no tokens: its one token is the bonus token of the request in the verifier's last
    round, which the scheduler does not know yet. If there is none, the verdict is STALE_ROUND and nothing changes.

    A span that `wants_features` is answered with those of its tokens and of the accepted drafts.

    A span with more than one of `num_steps` has no drafts, samples and wants no features. Each further step caches the
    token of the one before and samples the next, as a command of its own would.
    """

    request_id: int
    prefix_len: int
    tokens: tuple[int, ...]
    drafts: tuple[int, ...] = ()
    q: TruncatedQ | None = None
    sample: bool = True
    spec: SequenceSpec | None = None
    follows: bool = False
    wants_features: bool = False
    source: DraftMethod = DraftMethod.MODEL  # of the drafts; for the scheduler's account, not sent
    num_steps: int = 1

    @property
    def committed_len(self) -> int:
        """The number of committed tokens that the verifier holds afterwards."""
        return self.prefix_len + (1 if self.follows else len(self.tokens))


@dataclass(frozen=True, slots=True)
class VerifyCommand:
    """feature_layers: the layers whose outputs are the features that spans want: n for the residual stream after n
    layers, -1 for the output of the final norm. The drafter names them in its handshake; they come with each
    command, so that drafters can come and go without a word to the verifier."""

    round: RoundId
    spans: tuple[VerifySpan, ...]
    released: tuple[int, ...] = ()
    feature_layers: tuple[int, ...] = ()


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

    tokens: the `accepted_len` accepted drafts, exactly one bonus (or replacement) token, and the `num_forced` tokens
    after it which are the only ones that the grammar allows; empty if the span did not sample or `error` is set. A span
    of several steps gets a bonus token of each, but of fewer if one ends the output or a further step is refused.
    committed_len: number of committed tokens before `tokens`. error: "" or a reason of minedraft.errors: NUMERIC, or
    STALE_ROUND for a span that follows a round without a token for it. features: of the tokens at the positions from
    the span's prefix length to `committed_len` + `accepted_len` - 1, if the span wants them and there is no error.
    """

    request_id: int
    committed_len: int
    accepted_len: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str = ""
    features: Features | None = None
    num_forced: int = 0
    is_end: bool = False  # the last token is a stop id; for the verifier's next step, not sent

    @property
    def num_steps(self) -> int:
        """Forwards that gave it a token; 0 if there are no tokens."""
        return max(len(self.tokens) - self.accepted_len - self.num_forced, 0)

    @property
    def cached_len(self) -> int:
        """The number of committed tokens that the verifier has cached: all but the last token and the forced ones."""
        return self.committed_len + self.accepted_len + max(self.num_steps - 1, 0)

    @property
    def bonus_token(self) -> int:
        """The token that the target added; only if there are tokens."""
        return self.tokens[self.accepted_len]


@dataclass(frozen=True, slots=True)
class VerifyReply:
    round: RoundId
    verdicts: tuple[Verdict, ...]
    timing: Timing
    num_free_blocks: int


@dataclass(frozen=True, slots=True)
class ConfigureCommand:
    """The cores that a worker computes on from now on. Commands of one epoch have growing numbers."""

    epoch: int
    number: int
    cores: tuple[int, ...]


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
    kernels: str = ""  # what computes a forward pass, as "native amx_bf16"; "" without a model
    is_batch_invariant: bool = False  # a row's logits are the same bits whatever else is in the forward
    channels: tuple[ChannelOffer, ...] = ()  # what can carry tensors besides messages
    weights_bytes: int = 0
    cores: tuple[int, ...] = ()  # numbers of the cores that it computes on in a new epoch; none on a GPU
    max_cores: tuple[int, ...] = ()  # those that a ConfigureCommand may give it; none: it keeps its own
    feature_layers: tuple[int, ...] = ()  # those that a verifier can give; those that a drafter needs
    feature_size: int = 0  # numbers per token: of one layer in a verifier; of all that a drafter needs
    clock_offset_ns: int = 0  # scheduler's clock less the worker's; measured by the link, not sent

    @property
    def can_run_ahead(self) -> bool:
        """Whether it is a drafter that can go on from tokens that are not verified yet."""
        return self.draft_method is not None and self.draft_method.can_run_ahead
