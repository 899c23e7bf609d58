"""The interfaces of the two workers, as the pipeline uses them over any kind of link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from minedraft.carriers import ChannelCommand, ChannelEnd
from minedraft.errors import WorkerLost
from minedraft.messages import DraftCommand, DraftReply, LinkStats, Timing, VerifyCommand, VerifyReply, WorkerInfo


class Worker(Protocol):
    """The link to a worker of either role.

    Attributes:
        info: the worker's answer to the handshake.
        stats: traffic so far.
        lost: set when the link is dead; `lost_error` then names the worker and the cause.
    """

    @property
    def info(self) -> WorkerInfo: ...

    @property
    def stats(self) -> LinkStats: ...

    @property
    def lost(self) -> asyncio.Event: ...

    @property
    def lost_error(self) -> WorkerLost | None: ...

    on_channel_failure: Callable[[str], None]
    """Called when the worker says that a carrier fails, with the cause."""

    async def prepare_channel(self, command: ChannelCommand) -> ChannelEnd | None:
        """Take a step to a carrier. Return the worker's end after OPEN, else None. Raise as `release`, and
        ChannelFailed for an answer that does not fit."""
        ...

    def give_up(self, cause: str) -> None:
        """Declare the link dead although the worker lives: it is of no use."""
        ...

    async def release(self, request_ids: Sequence[int]) -> int:
        """Free KV outside a round. Return the number of free blocks afterwards.

        Raises:
            WorkerLost: the worker is lost; every other call raises it too.
            ProtocolError: a command or a reply breaks the contract.
        """
        ...

    async def configure(self, cores: Sequence[int]) -> Timing:
        """Have the worker compute on these cores, some of its `max_cores`, from the next command on.

        Raises:
            WorkerLost, ProtocolError: as `release`; the worker keeps the cores that it has.
        """
        ...

    async def close(self) -> None:
        """Drop the connection; pending calls raise WorkerLost. Safe to call twice."""
        ...


class Drafter(Worker, Protocol):
    """The process that proposes tokens."""

    async def draft(self, command: DraftCommand) -> DraftReply:
        """Return one Proposal of up to `draft_len` tokens for each span that asks for drafts.

        Raises:
            WorkerLost: the drafter is lost; every other call raises it too.
            ProtocolError: a command or a reply breaks the contract; the drafter lives. The error's
                `request_id` is the request whose span was refused, if a single one is at fault.
        """
        ...

    async def prefill(self, command: DraftCommand) -> DraftReply:
        """Cache the tokens of each span; propose nothing. Raise as `draft`."""
        ...


class Verifier(Worker, Protocol):
    """The process that runs the target model."""

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        """Return one Verdict for each span, in the command's order.

        Raises:
            WorkerLost: the verifier is lost; every other call raises it too.
            ProtocolError: a command or a reply breaks the contract; the verifier lives. The error's
                `request_id` is the request whose span was refused, if a single one is at fault.
        """
        ...

    def curtail(self, number: int) -> None:
        """Have the rounds up to this number make no further steps; their verdicts then have fewer tokens. It has no
        answer, and a verifier that is lost needs none."""
        ...
