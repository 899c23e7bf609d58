"""The seams to the two workers: what the pipeline asks of them, whatever carries it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from minedraft.errors import WorkerLost
from minedraft.types import DraftCommand, DraftReply, LinkStats, VerifyCommand, VerifyReply, WorkerInfo


class Worker(Protocol):
    """What both links have.

    Attributes:
        info: what the worker said of itself in the handshake.
        stats: what has gone over the link.
        lost: set when the link is dead; `lost_error` then says which worker and why.
    """

    @property
    def info(self) -> WorkerInfo: ...

    @property
    def stats(self) -> LinkStats: ...

    @property
    def lost(self) -> asyncio.Event: ...

    @property
    def lost_error(self) -> WorkerLost | None: ...

    def give_up(self, cause: str) -> None:
        """Declare the link dead: the worker lives, but it is of no use as it is."""
        ...

    async def release(self, request_ids: Sequence[int]) -> int:
        """Free KV outside a round; returns the number of free blocks after.

        Raises:
            WorkerLost: the worker is gone, and with it every other call.
            ProtocolError: a command or a reply breaks the contract.
        """
        ...

    async def close(self) -> None:
        """Drop the connection; pending calls raise WorkerLost. Safe to call twice."""
        ...


class Drafter(Worker, Protocol):
    """The process that proposes tokens."""

    async def draft(self, command: DraftCommand) -> DraftReply:
        """Propose `draft_len` tokens (or fewer) for each span, one Proposal for each span that asks for any.

        Raises:
            WorkerLost: the drafter is gone, and with it every other call.
            ProtocolError: a command or a reply breaks the contract; the drafter lives. The error's
                `request_id` is the request whose span was refused, if it is one.
        """
        ...

    async def prefill(self, command: DraftCommand) -> DraftReply:
        """Cache the tokens of each span; proposes nothing. Raises as `draft`."""
        ...


class Verifier(Worker, Protocol):
    """The process that runs the target model."""

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        """Check the drafts of each span; one Verdict for each span, in the command's order.

        Raises:
            WorkerLost: the verifier is gone, and with it every other call.
            ProtocolError: a command or a reply breaks the contract; the verifier lives. The error's
                `request_id` is the request whose span was refused, if it is one.
        """
        ...
