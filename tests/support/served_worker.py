"""A worker served in this process, with a gate in its forward, and a link to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio

from minedraft.address import Address
from minedraft.messages import DraftCommand, Proposal, Verdict, VerifyCommand, VerifySpan
from minedraft.rpc.channel import EPOCH_KEY
from minedraft.rpc.worker_link import GrpcVerifier
from minedraft.security.tls import ServerTls
from minedraft.types import PROTOCOL_VERSION, Batch, Role, RoundId
from minedraft.v1 import worker_pb2
from minedraft_workers.rounds.actors import Cores, Work
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.server import start
from minedraft_workers.servicer import drafter_handler, verifier_handler
from scripts.lib.null_worker import NullActor


class GatedActor(NullActor):
    """Waits at a gate inside every command and records what it has executed.

    Behind the gate it calls `work`, then raises `failure`, if set. `spoil` changes the verdicts before they
    are sent.
    """

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.executed: list[str] = []
        self.work: Callable[[], object] = lambda: None
        self.failure: Exception | None = None
        self.spoil: dict[str, object] = {}

    def _pass(self, what: str) -> None:
        self.entered.set()
        self.gate.wait()
        self.executed.append(what)
        self.work()
        if self.failure is not None:
            raise self.failure

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        self._pass(f"draft {command.round.number}")
        return super().draft(command)

    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        self._pass(f"verify {command.round.number}")
        verdicts = super().verify(command).rows
        return Work(tuple(replace(verdict, **self.spoil) for verdict in verdicts))  # type: ignore[arg-type]

    def reset(self, target_vocab_size: int) -> None:
        self.executed.append("reset")


class Served:
    """A worker in this process; stopping `server` simulates its death."""

    def __init__(self, actor: GatedActor, runtime: WorkerRuntime, server: grpc.aio.Server, address: Address) -> None:
        self.actor, self.runtime, self.server, self.address = actor, runtime, server, address

    async def entered(self) -> None:
        """Return when the device thread is at the gate."""
        await asyncio.to_thread(self.actor.entered.wait)
        self.actor.entered.clear()

    async def taken_in(self, num_commands: int) -> None:
        """Return when `num_commands` are in the mailbox or in the device thread."""
        while self.runtime.num_open < num_commands:  # noqa: ASYNC110 - the product has no event for tests
            await asyncio.sleep(0)


@asynccontextmanager
async def served(
    role: Role,
    folder: Path,
    mailbox_size: int = 32,
    cores: Cores | None = None,
    *,
    listen: Address | None = None,
    tls: ServerTls | None = None,
) -> AsyncIterator[Served]:
    actor = GatedActor(role)
    runtime = WorkerRuntime(actor, mailbox_size, cores)
    handler = drafter_handler(actor, runtime) if role is Role.DRAFTER else verifier_handler(actor, runtime)
    address = listen or Address(path=folder / f"{role.value}.sock")
    server, _ = await start(handler, address, tls)
    try:
        yield Served(actor, runtime, server, address)
    finally:
        actor.gate.set()
        await server.stop(0)
        assert runtime.stop(5)


def command(link: GrpcVerifier, number: int, batch: Batch = Batch.A, **changes: object) -> VerifyCommand:
    span = replace(VerifySpan(1, 4, (5,), drafts=(6, 7)), **changes)  # type: ignore[arg-type]
    return VerifyCommand(RoundId(link.info.epoch, batch, number), (span,))


def raw_channel(worker: Served) -> grpc.aio.Channel:
    """Return a channel without the product's link on it, without a limit on the size of messages."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(worker.address.target, options=options)


async def shake_hands(channel: grpc.aio.Channel) -> worker_pb2.HandshakeReply:
    call = channel.unary_unary(
        "/minedraft.v1.Verifier/Handshake",
        request_serializer=worker_pb2.HandshakeRequest.SerializeToString,
        response_deserializer=worker_pb2.HandshakeReply.FromString,
    )
    return await call(worker_pb2.HandshakeRequest(protocol_version=PROTOCOL_VERSION, client_name="a test"))


def open_stream(channel: grpc.aio.Channel, epoch: int) -> Any:
    """Open a stream of raw bytes to the worker, for the epoch of a handshake."""
    return channel.stream_stream("/minedraft.v1.Verifier/Run")(metadata=((EPOCH_KEY, str(epoch)),))
