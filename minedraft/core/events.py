"""Everything that happens to a request, a round or a worker, as frozen values.

The scheduler and the pipeline publish events; observers take them (statistics, status, timeline, policies).
To learn something new, add an observer, not a line in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from minedraft.errors import LossCause
from minedraft.messages import LinkStats, Timing, WorkerInfo
from minedraft.types import Batch, DraftMethod, FinishReason, Mode, Role


@dataclass(frozen=True, slots=True)
class RequestQueued:
    """A request was accepted and waits for a seat. name: the id that its client knows it by, "" if it has none."""

    request_id: int
    prompt_len: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class RequestSeated:
    """A request got a seat in `batch` and takes part in its rounds from now on."""

    request_id: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class RequestMoved:
    """A request moved to `batch` at its round boundary."""

    request_id: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class RequestPreempted:
    """A request lost its seat and its KV to an older one; it waits and is recomputed later."""

    request_id: int


@dataclass(frozen=True, slots=True)
class RequestPaused:
    """A request wants no seat now: its client does not read. It keeps its KV while nobody needs it."""

    request_id: int


@dataclass(frozen=True, slots=True)
class RequestResumed:
    """A paused request waits for a seat again."""

    request_id: int


@dataclass(frozen=True, slots=True)
class RequestReplayed:
    """A request lost its KV with the verifier; it keeps its seat and its tokens, and is recomputed by the next one."""

    request_id: int


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request ended; its last event. reason: None if it ended with an error. error: that error's reason, else ""."""

    request_id: int
    output_len: int
    reason: FinishReason | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class LaneIdle:
    """The lane of `batch` found nothing to do, so the time to its next round is not overhead."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class RoundPlanned:
    """A round began. num_prompt_tokens: prompt tokens that it caches in the verifier. num_drafts: drafts to ask
    for. depth: the most for one request. num_drafter_tokens: committed tokens that it caches in the drafter.
    ahead_depth, num_branches: the most drafts that are prepared for a request's next round, and in how many ways."""

    batch: Batch
    number: int
    num_requests: int
    num_prompt_tokens: int
    num_drafts: int
    depth: int = 0
    num_drafter_tokens: int = 0
    ahead_depth: int = 0
    num_branches: int = 0


@dataclass(frozen=True, slots=True)
class Drafted:
    """The drafter executed a command of a round; with `is_prefill`, one without drafts; with `is_ahead`, one that is
    for the next round: a round can have a draft and a run ahead."""

    batch: Batch
    number: int
    timing: Timing
    is_prefill: bool
    is_ahead: bool = False


@dataclass(frozen=True, slots=True)
class DraftsNotFinite:
    """The drafts of `num_rows` rows of a round ended where the draft model's logits have NaN or Inf."""

    batch: Batch
    number: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Verified:
    """The verifier executed a round's command. feature_bytes: of the features that it delivered. num_steps: forwards
    that it ran, one after the other."""

    batch: Batch
    number: int
    timing: Timing
    feature_bytes: int = 0
    num_steps: int = 1


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """A round's verdicts became part of its requests.

    Attributes:
        accepted: (drafts verified, drafts accepted) of each request that had drafts.
        is_prefill: whether the round carried prompt tokens, for either worker.
        num_active: batches that have requests after the round.
        sources: what made the drafts, for each entry of `accepted`.
        grown: (request id, number of new output tokens) of each request that got some.
        runs: (drafts verified, whether one of the branches came true) of each request ahead of which the drafter ran.
    """

    batch: Batch
    number: int
    num_requests: int
    num_output_tokens: int
    accepted: tuple[tuple[int, int], ...]
    is_prefill: bool
    num_active: int
    sources: tuple[DraftMethod, ...] = ()
    runs: tuple[tuple[int, bool], ...] = ()
    grown: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RoundAbandoned:
    """A round was given up; those of its requests that did not end with it go on."""

    batch: Batch
    number: int


@dataclass(frozen=True, slots=True)
class ProposalsDropped:
    """Proposals were dropped: they match no request of their round, or do not continue it."""

    batch: Batch
    number: int
    num_proposals: int


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """A worker refused a command, or its reply broke the contract; the worker is kept.

    batch, number: the command's round; None and 0 for a command outside the rounds. reason: of the error.
    request_id: the request at fault; None if no single one is.
    """

    role: Role
    batch: Batch | None
    number: int
    cause: str
    reason: str = ""
    request_id: int | None = None


@dataclass(frozen=True, slots=True)
class DrafterLate:
    """A round waited `waited_s` seconds for the drafter in vain and goes on without drafts; so do those after it, until
    the drafter answers or is lost."""

    waited_s: float


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker joined, with nothing cached."""

    info: WorkerInfo


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker was lost. cause: in words. stats: the traffic of its link."""

    role: Role
    cause: str
    stats: LinkStats
    kind: LossCause = LossCause.DEAD


@dataclass(frozen=True, slots=True)
class DraftingSuspended:
    """A request, or with `request_id` None the whole service, decodes without drafts: they were useless.

    Attributes:
        num_accepted, num_rows: of so many rows (a request in a round) the first draft was accepted so often.
        again_after_s, again_after_tokens: when drafts are tried again: seconds, or output tokens of the request.
    """

    request_id: int | None
    cause: str
    num_accepted: int
    num_rows: int
    again_after_s: float = 0.0
    again_after_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DraftingResumed:
    """A request or the whole service drafts again. is_trial: to see whether drafts are accepted by now."""

    request_id: int | None
    is_trial: bool


@dataclass(frozen=True, slots=True)
class CoresChanged:
    """A worker computes on other cores. timing: of the command that changed them."""

    role: Role
    cores: tuple[int, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class PolicyReplaced:
    """A policy failed; the fixed one decides from now on."""

    cause: str


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """New mode and sizes are in force. why: who asked for them. is_lent: a client sets them, and no policy. keep_cores:
    each worker computes on its own cores only."""

    mode: Mode
    max_batch_size: int
    draft_len: int
    why: str
    is_lent: bool = False
    keep_cores: bool = False


Event: TypeAlias = (
    RequestQueued
    | RequestSeated
    | RequestMoved
    | RequestPreempted
    | RequestReplayed
    | RequestPaused
    | RequestResumed
    | RequestEnded
    | LaneIdle
    | RoundPlanned
    | Drafted
    | DraftsNotFinite
    | Verified
    | RoundCommitted
    | RoundAbandoned
    | ProposalsDropped
    | CommandFailed
    | DrafterLate
    | WorkerJoined
    | WorkerLeft
    | ModeChanged
    | CoresChanged
    | DraftingSuspended
    | DraftingResumed
    | PolicyReplaced
)

# Within a round: RoundPlanned, Drafted, Verified, then what the round does to its requests (RequestEnded,
# RequestPreempted, RequestPaused, RequestMoved), and RoundCommitted or RoundAbandoned as its last event.
Observer: TypeAlias = Callable[[Event, float], None]
"""Takes an event and the scheduler's monotonic time in seconds. It must not block, raise, or change anything but
itself."""
