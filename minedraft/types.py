"""Words that every part uses, and their limits; `messages.py` has the commands and replies. Standard library only.

Glossary (the same words everywhere):

* *target* / *draft model*: the model whose output is served / the small one that proposes tokens.
* *verifier* / *drafter*: the worker processes that run them. *slot*: the place of a worker in the
  pipeline, empty while the worker is lost.
* *committed tokens*: prompt + accepted output, the only truth about a request. *bonus token*: the token
  the target adds after the accepted drafts.
* *batch*: the requests that share rounds, A or B. *seat*: the place of one request in a batch.
* *round*: one draft + one verify of one batch. *lane*: the task that takes one batch from round to
  round. *step*: the time from one committed round to the next, whichever batch they are of.
* the drafter *runs ahead* of a request: while its drafts are verified, it drafts on for several ways in which that
  may end, the *branches*: so many drafts accepted, and then a certain bonus token.
* a round *follows* another one of its batch: it is sent before the other has ended, and starts from its tokens.
* *span*: one request's part of a round, a command or a forward. *prefix length*: the number of leading
  committed tokens a worker's KV holds.
* *features*: what the target computes inside for a token, the outputs of some of its layers; a drafter may read them.
* *introduce* a request: send a worker its first span, with prefix length 0 and the `SequenceSpec`.
  *release* a request: tell a worker to free its KV and forget it.
* *observer*: a function that takes every event. *policy*: an object that makes one kind of decision.

A request sampled `n` times is `n` requests here, each with its own id.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from minedraft.errors import InvalidRequest
from minedraft.sampling_params import MAX_DRAFT_LEN, SamplingParams

PROTOCOL_VERSION = 6
MAX_SPANS = 1024  # requests in one worker command
MAX_SPAN_DRAFTS = 64  # draft tokens that one span of a worker command can carry
MAX_STEPS = 16  # forwards that one verify command can ask for
MAX_FORCED = 16  # tokens that a grammar forces, in one verdict: as many as drafts
MAX_TOP_M = 1024  # entries of a truncated draft distribution
MAX_FEATURE_SIZE = 1 << 18  # numbers that the target gives a drafter for one token
MAX_FEATURE_LAYERS = 1024  # layers of a target, one of which has the number -1
MAX_BATCH_SIZE = 256  # the largest m of two batches; one batch can have the seats of both
MAX_BRANCHES = 16  # branches that a run ahead can prepare
BRANCHES = 4  # the same, while nobody says how many


class Batch(IntEnum):
    """The two batches; a request has a seat in at most one."""

    A = 0
    B = 1

    @property
    def other(self) -> Batch:
        return Batch(1 - self)


class Mode(str, Enum):
    """How drafting and verifying alternate; `AR` is `SD` with draft_len 0, `SD` is one batch, `PEARL` is one batch
    whose next drafts are prepared while the last ones are verified (Liu et al. 2024)."""

    AR = "ar"
    SD = "sd"
    MINEDRAFT = "minedraft"
    PEARL = "pearl"

    @property
    def num_batches(self) -> int:
        return 2 if self is Mode.MINEDRAFT else 1

    @property
    def has_drafts(self) -> bool:
        return self is not Mode.AR

    @property
    def runs_ahead(self) -> bool:
        """Whether the drafter goes on from tokens that are not verified yet."""
        return self is Mode.PEARL

    @property
    def takes_turns(self) -> bool:
        """Whether one worker waits while the other one computes; but both cache a prompt at once."""
        return self.num_batches == 1 and not self.runs_ahead


class DraftMethod(str, Enum):
    """Where drafts come from: a draft model, n-grams of the request's own text (no model, no KV), or a head that reads
    the target's features (Li et al. 2024, EAGLE)."""

    MODEL = "model"
    NGRAM = "ngram"
    EAGLE = "eagle"

    @property
    def can_run_ahead(self) -> bool:
        """Whether it drafts from tokens alone, so that it can go on from tokens that are not verified yet."""
        return self in (DraftMethod.MODEL, DraftMethod.NGRAM)


NO_RUNNING_AHEAD = "a head reads what the target has verified, so it cannot draft during a verify; use minedraft or sd"
"""Why `pearl` cannot be had with a head."""


@dataclass(frozen=True, slots=True)
class LoanTerms:
    """What a client that borrows the service sets: mode, requests per batch (m), drafts per request (k), and for
    `pearl` the branches prepared per request (0: as many as the service was started with). keep_cores: in `ar` and
    `sd`, each worker computes on its own cores only."""

    mode: Mode
    max_batch_size: int
    draft_len: int
    branches: int = 0
    keep_cores: bool = False

    @classmethod
    def check(
        cls, mode: object, max_batch_size: object, draft_len: object, branches: object = 0, keep_cores: bool = False
    ) -> LoanTerms:
        """Return the terms. Raise InvalidRequest for an unknown mode or a size out of range."""
        modes = [mode.value for mode in Mode]
        if mode not in modes:
            raise InvalidRequest("mode", mode, f"one of {', '.join(modes)}")
        most = MAX_BATCH_SIZE * 2 // Mode(mode).num_batches
        m = _check_int("max_batch_size", max_batch_size, 1, most)
        k = _check_int("draft_len", draft_len, 0, MAX_DRAFT_LEN)
        return cls(Mode(mode), m, k, _check_int("branches", branches, 0, MAX_BRANCHES), keep_cores)


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


class ScoreKind(IntEnum):
    """What a drafter says of each of its drafts besides the token: a probability, under its model's logits as they
    are, or an estimate of the share that is accepted, where drafts are looked up."""

    NONE = 0
    PEAK = 1  # of the most probable token at the draft's position; it does not depend on the draft itself
    DRAWN = 2  # of the draft


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


def _check_int(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(name, value, f"must be an integer in [{low}, {high}]")
    return value
