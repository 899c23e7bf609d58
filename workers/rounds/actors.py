"""What a worker's runtime calls: the actor that has the model, and the cores that it computes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from minedraft.core.blocks import BlocksExhausted
from minedraft.errors import InvalidRequest, MemoryExhausted, ProtocolError
from minedraft.messages import DraftCommand, Proposal, Timing, Verdict, VerifyCommand, WorkerInfo

# An actor raises these with every request as it was; any other exception ends the process.
REFUSALS = (InvalidRequest, ProtocolError, BlocksExhausted, MemoryExhausted)

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Work(Generic[RowT]):
    """An actor's result of a command. forward_ns: nanoseconds spent in forwards of the model. num_not_finite: rows
    whose drafts ended at logits with NaN or Inf."""

    rows: tuple[RowT, ...]
    forward_ns: int = 0
    num_not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Executed(Generic[RowT]):
    """The result of a command with the other contents of its reply."""

    rows: tuple[RowT, ...]
    timing: Timing
    num_free_blocks: int
    num_not_finite: int = 0


class Actor(Protocol):
    """A worker's state. Every method but `info` is called in the device thread."""

    @property
    def info(self) -> WorkerInfo:
        """Constant once the worker serves; the runtime fills in the epoch."""
        ...

    @property
    def num_free_blocks(self) -> int: ...

    def release(self, request_ids: Sequence[int]) -> None:
        """Forget requests; unknown ids are ignored."""
        ...

    def reset(self, target_vocab_size: int) -> None:
        """Forget everything: a new epoch begins. A drafter then proposes only ids below `target_vocab_size`
        (0: no limit), because the target may have fewer rows than the draft model."""
        ...


class DraftingActor(Actor, Protocol):
    """Its methods raise one of REFUSALS for a command that cannot be executed, and then only apply its releases."""

    def draft(self, command: DraftCommand) -> Work[Proposal]: ...

    def prefill(self, command: DraftCommand) -> Work[Proposal]: ...


class VerifyingActor(Actor, Protocol):
    """Its methods raise one of REFUSALS for a command that cannot be executed, and then only apply its releases."""

    def verify(self, command: VerifyCommand) -> Work[Verdict]: ...


class Cores(Protocol):
    """The cores that a worker computes on. Its methods are called in the device thread."""

    def change(self, cores: Sequence[int]) -> None:
        """Compute on these from the next command on. Raise one of REFUSALS if that cannot be; nothing changes then."""
        ...

    def reset(self) -> None:
        """Return to the worker's own: a new epoch begins."""
        ...


class OwnCores:
    """Cores that do not change."""

    def change(self, cores: Sequence[int]) -> None:
        raise InvalidRequest("cores", tuple(cores), "this worker keeps its own")

    def reset(self) -> None:
        pass
