"""Everything that happens to a request, a round or a worker, as frozen values.

The scheduler and the pipeline say what happened; observers take it (statistics, status, pictures, policies).
Whoever wants to know something new adds an observer, not a line in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from minedraft.types import Batch, FinishReason, LinkStats, Mode, Role, Timing, WorkerInfo


@dataclass(frozen=True, slots=True)
class RequestQueued:
    """A request was accepted; it waits for a seat."""

    request_id: int
    prompt_len: int


@dataclass(frozen=True, slots=True)
class RequestSeated:
    """A request takes part in the rounds of `batch` from now on."""

    request_id: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class RequestMoved:
    """A request changed to `batch` at the boundary of its round."""

    request_id: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class RequestPreempted:
    """A request gave its KV memory to an older one; it waits, and is recomputed later."""

    request_id: int


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request's last event. reason: None where it ended with an error, whose reason `error` is."""

    request_id: int
    output_len: int
    reason: FinishReason | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class LaneIdle:
    """The lane of `batch` has found nothing to do; its next round shows a lack of work, not the machinery."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class RoundPlanned:
    """A round was begun. num_prompt_tokens: prompt tokens it caches in the verifier. num_drafts: asked for."""

    batch: Batch
    number: int
    num_requests: int
    num_prompt_tokens: int
    num_drafts: int


@dataclass(frozen=True, slots=True)
class Drafted:
    """The drafter executed a command of a round: a draft, or with `is_prefill` the caching of prompt tokens."""

    batch: Batch
    number: int
    timing: Timing
    is_prefill: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """The verifier executed the command of a round."""

    batch: Batch
    number: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """A round's verdicts are part of its requests now.

    Attributes:
        accepted: (drafts verified, drafts accepted) of each request that had drafts.
        is_prefill: it carried prompt tokens, for either worker.
        num_active: batches that have requests after it.
    """

    batch: Batch
    number: int
    num_requests: int
    num_output_tokens: int
    accepted: tuple[tuple[int, int], ...]
    is_prefill: bool
    num_active: int


@dataclass(frozen=True, slots=True)
class RoundAbandoned:
    """A round came to nothing; its requests go on, but for those that ended with it."""

    batch: Batch
    number: int


@dataclass(frozen=True, slots=True)
class ProposalsDropped:
    """Proposals that match no request of their round, or no longer continue it."""

    batch: Batch
    number: int
    num_proposals: int


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """A worker refused a command, or answered it against the contract; the worker lives.

    batch, number: of its round; None and 0 for a command outside the rounds.
    """

    role: Role
    batch: Batch | None
    number: int
    cause: str


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker is there, with nothing cached."""

    info: WorkerInfo


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker is gone. stats: what went over its link."""

    role: Role
    cause: str
    stats: LinkStats


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """Mode and sizes are in force. why: who asked for them."""

    mode: Mode
    max_batch_size: int
    draft_len: int
    why: str


Event: TypeAlias = (
    RequestQueued
    | RequestSeated
    | RequestMoved
    | RequestPreempted
    | RequestEnded
    | LaneIdle
    | RoundPlanned
    | Drafted
    | Verified
    | RoundCommitted
    | RoundAbandoned
    | ProposalsDropped
    | CommandFailed
    | WorkerJoined
    | WorkerLeft
    | ModeChanged
)

Observer: TypeAlias = Callable[[Event, float], None]
"""Takes an event and the scheduler's monotonic time in seconds. Must not block, raise or change anything else."""
