"""The scheduler's end of the worker links: drafter and verifier over gRPC.

A link dies as a whole. When the worker's process ends, its connection drops or it fails, every pending
and every later call raises `WorkerLost` immediately; only a new link (handshake, new epoch) helps then.
A reply that breaks the contract raises `ProtocolError`. Commands have no deadline, because a forward may
take long: pings detect a silent host, and a worker whose device hangs exits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import ClassVar, Self, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from minedraft.address import Address
from minedraft.carriers import ChannelCommand, ChannelEnd
from minedraft.errors import (
    ConfigError,
    InternalError,
    InvalidRequest,
    MineDraftError,
    ProtocolError,
    StaleRound,
    WorkerLost,
)
from minedraft.messages import (
    ConfigureCommand,
    DraftCommand,
    DraftReply,
    LinkStats,
    Tensor,
    Timing,
    VerifyCommand,
    VerifyReply,
    WorkerInfo,
)
from minedraft.rpc.channel import EPOCH_KEY, worker_channel
from minedraft.rpc.codec import common
from minedraft.rpc.codec.channel import (
    MAX_FAILURE_CHARS,
    MAX_FREED,
    channel_command_to_pb,
    channel_reply_from_pb,
)
from minedraft.rpc.codec.draft import draft_command_to_pb, draft_reply_from_pb
from minedraft.rpc.codec.link import encode, envelope_to_bytes, refusal_from_pb
from minedraft.rpc.codec.tensor import generations_in
from minedraft.rpc.codec.verify import verify_command_to_pb, verify_reply_from_pb
from minedraft.rpc.leases import LeaseBook
from minedraft.types import PROTOCOL_VERSION, Role
from minedraft.v1 import common_pb2, worker_pb2

logger = logging.getLogger("minedraft.rpc.worker_link")

_SLOW_COMMAND_S = 60.0  # a command that takes longer is logged, once
_IN_USE_POLL_S = 0.2
_IN_USE_WAIT_S = 3.0  # after a restart, the previous scheduler may still be exiting

_Stream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class _WorkerLink:
    """One connection and one epoch of a worker. Made by `connect`, ended by `close` or `async with`.

    Attributes:
        info: the worker's answer to the handshake.
        stats: traffic so far.
        lost: set when the link is dead; `lost_error` then names the worker and the cause.
        on_channel_failure: called when the worker says that a carrier fails, with the cause.
    """

    role: ClassVar[Role]
    _service: ClassVar[str]

    def __init__(self, address: Address) -> None:
        self.address = address
        self.info: WorkerInfo
        self.stats = LinkStats()
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None
        self.on_channel_failure: Callable[[str], None] = _ignore
        self._leases = LeaseBook()
        self._channel = worker_channel(address)
        self._stream: _Stream | None = None
        self._reader: asyncio.Task[None]
        self._writer: asyncio.Task[None]
        self._last_call = 0
        self._last_configure = 0
        self._pending: dict[int, asyncio.Future[worker_pb2.Reply]] = {}
        self._outbox: deque[bytes] = deque()
        self._has_mail = asyncio.Event()

    @classmethod
    async def connect(
        cls, address: Address | str, *, target_vocab_size: int = 0, connect_timeout_s: float = 10.0
    ) -> Self:
        """Return a link after a handshake, which starts a new epoch of the worker: KV and stored replies dropped.

        Args:
            target_vocab_size: for a drafter: the ids that it proposes are below it; 0 for no limit.
            connect_timeout_s: seconds to wait for the worker to answer and to be free.

        Raises:
            ConfigError: the server at the address is no such worker, speaks another protocol version, or
                is in use by another scheduler.
            WorkerLost: no answer in time.
        """
        link = cls(Address.parse(address) if isinstance(address, str) else address)
        try:
            link.info = await link._shake_hands(target_vocab_size, connect_timeout_s)
        except BaseException:
            await link.close()
            raise
        metadata = ((EPOCH_KEY, str(link.info.epoch)),)
        run = link._channel.stream_stream(f"/minedraft.v1.{cls._service}/Run", None, None)
        link._stream = stream = run(None, metadata=metadata)
        link._reader = asyncio.create_task(link._read_replies(stream), name=f"{cls.role.value}-replies")
        link._writer = asyncio.create_task(link._write_commands(stream), name=f"{cls.role.value}-commands")
        return link

    def give_up(self, cause: str) -> None:
        """Declare the link dead although the worker lives: it is of no use."""
        self._lose(cause)

    async def close(self) -> None:
        """Drop the connection; pending calls raise WorkerLost. Safe to call twice."""
        self._lose("its link was closed here")
        if self._stream is not None:
            # The reader is not cancelled: an event of its stream could then arrive after the event loop has closed.
            self._stream.cancel()
            self._writer.cancel()
            await asyncio.gather(self._reader, self._writer, return_exceptions=True)
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def release(self, request_ids: Sequence[int]) -> int:
        """Free KV outside a round. Return the number of free blocks afterwards."""
        reply = await self._call(
            worker_pb2.Command(release=common.release_to_pb(self.info.epoch, request_ids)), "release"
        )
        try:
            return common.release_reply_from_pb(reply.release, self.info)
        except InvalidRequest as error:
            raise ProtocolError(f"{self.role.value}'s reply: {error}") from error

    async def configure(self, cores: Sequence[int]) -> Timing:
        """Have the worker compute on these cores from the next command on. Return the times of the change."""
        self._last_configure += 1
        command = ConfigureCommand(self.info.epoch, self._last_configure, tuple(cores))
        message = encode(common.configure_to_pb, command)
        reply = await self._call(worker_pb2.Command(configure=message), "configure")
        return common.configure_reply_from_pb(reply.configure, self.info)

    async def prepare_channel(self, command: ChannelCommand) -> ChannelEnd | None:
        """Take a step to a carrier. Return the worker's end after OPEN, else None. Raise as `release`, and
        ChannelFailed for an answer that does not fit."""
        reply = await self._call(worker_pb2.Command(channel=channel_command_to_pb(command)), "channel")
        return channel_reply_from_pb(reply.channel, command)

    async def _call(self, command: worker_pb2.Command, reply_kind: str) -> worker_pb2.Reply:
        """Send a command and return its reply.

        Raises:
            WorkerLost: the link is dead, or dies meanwhile. ProtocolError: the worker refused the
            command, or its reply is of another kind. StaleRound: the command's round or epoch has passed.
        """
        if self.lost_error is not None:
            raise WorkerLost(str(self.lost_error))
        self._last_call += 1
        command.call = call = self._last_call
        data = envelope_to_bytes(command)
        self.stats.wire_bytes += len(data)
        waiter: asyncio.Future[worker_pb2.Reply] = asyncio.get_running_loop().create_future()
        self._pending[call] = waiter
        self.stats.num_open += 1
        self._outbox.append(data)
        self._has_mail.set()
        slow = asyncio.get_running_loop().call_later(_SLOW_COMMAND_S, self._tell_slow, reply_kind)
        try:
            reply = await waiter
        finally:
            slow.cancel()
            self._pending.pop(call, None)
            self.stats.num_open -= 1
        kind = reply.WhichOneof("kind")
        if kind == "refusal":
            raise self._to_error(refusal_from_pb(reply.refusal))
        if kind != reply_kind:
            raise ProtocolError(f"{self._name} answered a {reply_kind} command with {kind}")
        return reply

    async def _read_replies(self, stream: _Stream) -> None:
        """Read until the stream ends. It lives as long as the connection, so its end means a lost worker."""
        try:
            while isinstance(data := await stream.read(), bytes):  # else the end of the stream
                self.stats.wire_bytes += len(data)
                reply = worker_pb2.Reply.FromString(data)
                if reply.channel_failure:
                    self.on_channel_failure(reply.channel_failure[:MAX_FAILURE_CHARS])
                waiter = self._pending.get(reply.call)
                if waiter is None:
                    self.stats.num_stale += 1
                    self._leases.free(generations_in(_tensors_in(reply)))
                elif not waiter.done():
                    waiter.set_result(reply)
            self._lose("it ended the stream")
        except grpc.aio.AioRpcError as error:
            self._lose(f"{error.code().name}: {error.details()}")
        except DecodeError as error:
            self._lose(f"it sent bytes that are not a message: {error}")

    async def _write_commands(self, stream: _Stream) -> None:
        # A separate task: cancelling a caller inside `write` would end the stream for all callers.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader reports the cause
            while True:
                await self._has_mail.wait()
                self._has_mail.clear()
                while self._outbox:
                    await stream.write(self._outbox.popleft())

    @contextmanager
    def _decoding(self, reply: worker_pb2.Reply) -> Iterator[None]:
        """Count a stale reply, and free the leases of one that is dropped."""
        try:
            yield
        except MineDraftError as error:
            self.stats.num_stale += isinstance(error, StaleRound)
            self._leases.free(generations_in(_tensors_in(reply)))
            raise

    def _watch(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.reference is not None:
                self._leases.watch(tensor.reference)

    def _tell_slow(self, kind: str) -> None:
        logger.warning("%s has not answered a %s command for %.0f s; still waiting", self._name, kind, _SLOW_COMMAND_S)

    async def _shake_hands(self, target_vocab_size: int, timeout_s: float) -> WorkerInfo:
        handshake = self._channel.unary_unary(
            f"/minedraft.v1.{self._service}/Handshake",
            request_serializer=worker_pb2.HandshakeRequest.SerializeToString,
            response_deserializer=worker_pb2.HandshakeReply.FromString,
        )
        request = common.handshake_to_pb(_own_name(), target_vocab_size)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        in_use_until_s = loop.time() + min(timeout_s, _IN_USE_WAIT_S)
        while True:
            try:
                sent_ns = time.monotonic_ns()
                message = await handshake(request, timeout=deadline_s - loop.time(), wait_for_ready=True)
                received_ns = time.monotonic_ns()
                break
            except grpc.aio.AioRpcError as error:
                is_in_use = error.code() is grpc.StatusCode.ABORTED
                if not is_in_use or loop.time() + _IN_USE_POLL_S >= in_use_until_s:
                    raise self._handshake_error(error, timeout_s) from None
            await asyncio.sleep(_IN_USE_POLL_S)
        self.stats.wire_bytes += request.ByteSize() + message.ByteSize()
        try:
            info = common.info_from_pb(message, sent_ns, received_ns)
        except InvalidRequest as error:
            raise ProtocolError(f"{self.role.value}'s handshake: {error}") from error
        if info.protocol_version != PROTOCOL_VERSION:
            limit = f"this scheduler speaks protocol version {PROTOCOL_VERSION}, the worker {info.protocol_version}"
            raise ConfigError(f"{self.role.value} address", str(self.address), limit)
        if info.role is not self.role:
            limit = f"a {info.role.value} answers there, not a {self.role.value}"
            raise ConfigError(f"{self.role.value} address", str(self.address), limit)
        return info

    def _handshake_error(self, error: grpc.aio.AioRpcError, timeout_s: float) -> MineDraftError:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            other = Role.DRAFTER if self.role is Role.VERIFIER else Role.VERIFIER
            limit = f"a {other.value} or another service answers there, not a {self.role.value}"
            return ConfigError(f"{self.role.value} address", str(self.address), limit)
        if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED):
            return ConfigError(f"{self.role.value} address", str(self.address), str(error.details()))
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return WorkerLost(f"{self._name} did not answer within {timeout_s:g} s")
        return WorkerLost(f"{self._name}: {error.details()}")

    def _to_error(self, refusal: InternalError) -> MineDraftError:
        error: MineDraftError
        if isinstance(refusal, StaleRound):
            self.stats.num_stale += 1
            error = StaleRound(f"{self._name}: {refusal}")
        elif isinstance(refusal, ProtocolError):
            error = type(refusal)(f"{self._name} {refusal}")
        else:
            return self._lose(str(refusal))
        error.request_id = refusal.request_id
        return error

    def _lose(self, cause: str) -> WorkerLost:
        """Mark the link as dead, fail every pending call, and return the error."""
        if self.lost_error is None:
            self.lost_error = WorkerLost(f"{self._name} is lost: {cause}")
            self.lost.set()
            for waiter in self._pending.values():
                if not waiter.done():
                    waiter.set_exception(WorkerLost(str(self.lost_error)))
        return WorkerLost(str(self.lost_error))

    @property
    def _name(self) -> str:
        return f"{self.role.value} at {self.address}"


class GrpcDrafter(_WorkerLink):
    """A Drafter in another process."""

    role = Role.DRAFTER
    _service = "Drafter"

    async def draft(self, command: DraftCommand) -> DraftReply:
        return self._decode(await self._call(worker_pb2.Command(draft=self._encode(command)), "draft"), command)

    async def prefill(self, command: DraftCommand) -> DraftReply:
        return self._decode(await self._call(worker_pb2.Command(prefill=self._encode(command)), "draft"), command)

    def _encode(self, command: DraftCommand) -> worker_pb2.DraftRequest:
        message = encode(draft_command_to_pb, command)
        message.freed.extend(self._leases.take(MAX_FREED))
        return message

    def _decode(self, message: worker_pb2.Reply, command: DraftCommand) -> DraftReply:
        with self._decoding(message):
            reply = draft_reply_from_pb(message.draft, command, self.info)
        self._watch(side for row in reply.proposals if row.q is not None for side in (row.q.ids, row.q.probs))
        return reply


class GrpcVerifier(_WorkerLink):
    """A Verifier in another process."""

    role = Role.VERIFIER
    _service = "Verifier"

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        message = encode(verify_command_to_pb, command)
        message.freed.extend(self._leases.take(MAX_FREED))
        reply = await self._call(worker_pb2.Command(verify=message), "verify")
        with self._decoding(reply):
            checked = verify_reply_from_pb(reply.verify, command, self.info)
        self._watch(row.features.states for row in checked.verdicts if row.features is not None)
        return checked


def _tensors_in(reply: worker_pb2.Reply) -> Iterator[common_pb2.Tensor]:
    """Yield every tensor of a worker's reply."""
    for proposal in reply.draft.proposals:
        yield proposal.q.ids
        yield proposal.q.probs
    for verdict in reply.verify.verdicts:
        yield verdict.features.states


def _ignore(cause: str) -> None:
    """Leave a failure unheard: nobody has joined the worker with another one."""


def _own_name() -> str:
    """Return the name of this scheduler, as shown to another one that wants the same worker."""
    return f"the scheduler with process id {os.getpid()} on {socket.gethostname()}"
