"""The scheduler's end of the worker links: drafter and verifier as seams, and over gRPC.

A link dies as a whole. When the worker's process ends, its connection drops, it fails, or it lets a
deadline pass, every pending and every later call raises `WorkerLost` at once; a new link (handshake,
new epoch) is the only way back. A reply that breaks the contract raises `ProtocolError`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import ClassVar, Protocol, Self, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from minedraft.address import Address
from minedraft.errors import (
    ConfigError,
    InternalError,
    InvalidRequest,
    MineDraftError,
    ProtocolError,
    StaleRound,
    WorkerLost,
)
from minedraft.rpc import codec
from minedraft.rpc.channel import worker_channel_options
from minedraft.rpc.codec_draft import draft_command_to_pb, draft_reply_from_pb
from minedraft.rpc.codec_link import envelope_to_bytes, refusal_from_pb
from minedraft.rpc.codec_verify import verify_command_to_pb, verify_reply_from_pb
from minedraft.types import (
    PROTOCOL_VERSION,
    DraftCommand,
    DraftReply,
    Role,
    VerifyCommand,
    VerifyReply,
    WorkerInfo,
)
from minedraft.v1 import worker_pb2

_Stream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class Drafter(Protocol):
    """The process that proposes tokens."""

    @property
    def info(self) -> WorkerInfo: ...

    async def draft(self, command: DraftCommand) -> DraftReply:
        """Propose `draft_len` tokens (or fewer) for each span, one Proposal for each span that asks for any.

        Raises:
            WorkerLost: the drafter is gone, and with it every other call.
            ProtocolError: a command or a reply breaks the contract.
        """
        ...

    async def prefill(self, command: DraftCommand) -> DraftReply:
        """Cache the tokens of each span; proposes nothing. Raises as `draft`."""
        ...

    async def release(self, request_ids: Sequence[int]) -> int:
        """Free KV outside a round; returns the number of free blocks after. Raises as `draft`."""
        ...


class Verifier(Protocol):
    """The process that runs the target model."""

    @property
    def info(self) -> WorkerInfo: ...

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        """Check the drafts of each span; one Verdict for each span, in the command's order.

        Raises:
            WorkerLost: the verifier is gone, and with it every other call.
            ProtocolError: a command or a reply breaks the contract.
        """
        ...

    async def release(self, request_ids: Sequence[int]) -> int:
        """Free KV outside a round; returns the number of free blocks after. Raises as `verify`."""
        ...


class _WorkerLink:
    """One connection and one epoch of a worker. Made by `connect`, ended by `close` or `async with`.

    Attributes:
        info: what the worker said in the handshake.
        wire_bytes: serialised messages so far, both ways.
        num_stale: commands and replies dropped because they belong to another round or epoch.
        lost: set when the link is dead; `lost_error` then says which worker and why.
    """

    role: ClassVar[Role]
    _service: ClassVar[str]

    def __init__(self, address: Address, command_timeout_s: float) -> None:
        self.address = address
        self.info: WorkerInfo
        self.wire_bytes = 0
        self.num_stale = 0
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None
        self._command_timeout_s = command_timeout_s
        self._channel = grpc.aio.insecure_channel(address.target, options=worker_channel_options())
        self._stream: _Stream | None = None
        self._reader: asyncio.Task[None]
        self._writer: asyncio.Task[None]
        self._last_call = 0
        self._pending: dict[int, asyncio.Future[worker_pb2.Reply]] = {}
        self._outbox: deque[bytes] = deque()
        self._has_mail = asyncio.Event()

    @classmethod
    async def connect(
        cls, address: Address | str, *, command_timeout_s: float = 60.0, connect_timeout_s: float = 10.0
    ) -> Self:
        """Shake hands, which starts a new epoch of the worker: its KV and stored replies are dropped.

        Args:
            command_timeout_s: a command unanswered for so long means that the worker hangs: it is lost.
            connect_timeout_s: how long to wait for the worker to be there.

        Raises:
            ConfigError: something else answers there, or another version of this protocol.
            WorkerLost: nothing answers in time.
        """
        link = cls(Address.parse(address) if isinstance(address, str) else address, command_timeout_s)
        try:
            link.info = await link._shake_hands(connect_timeout_s)
        except BaseException:
            await link.close()
            raise
        link._stream = stream = link._channel.stream_stream(f"/minedraft.v1.{cls._service}/Run", None, None)(None)
        link._reader = asyncio.create_task(link._read_replies(stream), name=f"{cls.role.value}-replies")
        link._writer = asyncio.create_task(link._write_commands(stream), name=f"{cls.role.value}-commands")
        return link

    async def close(self) -> None:
        """Drop the connection; pending calls raise WorkerLost. Safe to call twice."""
        self._lose("its link was closed here")
        if self._stream is not None:
            # The reader ends by itself, with the stream: an event that comes later finds no event loop.
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
        """Free KV outside a round; returns the number of free blocks after."""
        reply = await self._call(
            worker_pb2.Command(release=codec.release_to_pb(self.info.epoch, request_ids)), "release"
        )
        try:
            return codec.release_reply_from_pb(reply.release, self.info)
        except InvalidRequest as error:
            raise ProtocolError(f"{self.role.value}'s reply: {error}") from error

    async def _call(self, command: worker_pb2.Command, reply_kind: str) -> worker_pb2.Reply:
        """Send a command and wait for its reply.

        Raises:
            WorkerLost: the link is dead, or dies meanwhile. ProtocolError: the worker refused the
            command, or answered another one. StaleRound: the command's round or epoch has passed.
        """
        if self.lost_error is not None:
            raise WorkerLost(str(self.lost_error))
        self._last_call += 1
        command.call = call = self._last_call
        data = envelope_to_bytes(command)
        self.wire_bytes += len(data)
        waiter: asyncio.Future[worker_pb2.Reply] = asyncio.get_running_loop().create_future()
        self._pending[call] = waiter
        self._outbox.append(data)
        self._has_mail.set()
        try:
            async with asyncio.timeout(self._command_timeout_s):
                reply = await waiter
        except TimeoutError:
            raise self._lose(f"no reply within {self._command_timeout_s:g} s") from None
        finally:
            self._pending.pop(call, None)
        kind = reply.WhichOneof("kind")
        if kind == "refusal":
            raise self._to_error(refusal_from_pb(reply.refusal))
        if kind != reply_kind:
            raise ProtocolError(f"{self._name} answered a {reply_kind} command with {kind}")
        return reply

    async def _read_replies(self, stream: _Stream) -> None:
        """Until the stream ends; it lives as long as the connection, so its end is the worker's death."""
        try:
            while isinstance(data := await stream.read(), bytes):  # else it is the end
                self.wire_bytes += len(data)
                reply = worker_pb2.Reply.FromString(data)
                waiter = self._pending.get(reply.call)
                if waiter is None:
                    self.num_stale += 1
                elif not waiter.done():
                    waiter.set_result(reply)
            self._lose("it ended the stream")
        except grpc.aio.AioRpcError as error:
            self._lose(f"{error.code().name}: {error.details()}")
        except DecodeError as error:
            self._lose(f"it sent bytes that are no message: {error}")

    async def _write_commands(self, stream: _Stream) -> None:
        # A task of its own: cancelling a caller inside `write` would end the stream for everybody.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader says why
            while True:
                await self._has_mail.wait()
                self._has_mail.clear()
                while self._outbox:
                    await stream.write(self._outbox.popleft())

    async def _shake_hands(self, timeout_s: float) -> WorkerInfo:
        handshake = self._channel.unary_unary(
            f"/minedraft.v1.{self._service}/Handshake",
            request_serializer=worker_pb2.HandshakeRequest.SerializeToString,
            response_deserializer=worker_pb2.HandshakeReply.FromString,
        )
        request = codec.handshake_to_pb()
        try:
            message = await handshake(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                other = Role.DRAFTER if self.role is Role.VERIFIER else Role.VERIFIER
                limit = f"no {self.role.value} answers there but a {other.value}, or another service"
                raise ConfigError(f"{self.role.value} address", str(self.address), limit) from None
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise ConfigError(f"{self.role.value} address", str(self.address), str(error.details())) from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise WorkerLost(f"{self._name} does not answer within {timeout_s:g} s") from None
            raise WorkerLost(f"{self._name}: {error.details()}") from None
        self.wire_bytes += request.ByteSize() + message.ByteSize()
        try:
            info = codec.info_from_pb(message)
        except InvalidRequest as error:
            raise ProtocolError(f"{self.role.value}'s handshake: {error}") from error
        if info.protocol_version != PROTOCOL_VERSION:
            limit = f"this scheduler speaks protocol version {PROTOCOL_VERSION}, the worker {info.protocol_version}"
            raise ConfigError(f"{self.role.value} address", str(self.address), limit)
        if info.role is not self.role:
            limit = f"a {info.role.value} answers there, not a {self.role.value}"
            raise ConfigError(f"{self.role.value} address", str(self.address), limit)
        return info

    def _to_error(self, refusal: InternalError) -> MineDraftError:
        if isinstance(refusal, StaleRound):
            self.num_stale += 1
            return StaleRound(f"{self._name}: {refusal}")
        if isinstance(refusal, ProtocolError):
            return ProtocolError(f"{self._name} {refusal}")
        return self._lose(str(refusal))

    def _lose(self, cause: str) -> WorkerLost:
        """Fail every pending call, now, in this one place."""
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
        reply = await self._call(worker_pb2.Command(draft=draft_command_to_pb(command)), "draft")
        return self._decode(reply, command)

    async def prefill(self, command: DraftCommand) -> DraftReply:
        reply = await self._call(worker_pb2.Command(prefill=draft_command_to_pb(command)), "draft")
        return self._decode(reply, command)

    def _decode(self, reply: worker_pb2.Reply, command: DraftCommand) -> DraftReply:
        try:
            return draft_reply_from_pb(reply.draft, command, self.info)
        except StaleRound:
            self.num_stale += 1
            raise


class GrpcVerifier(_WorkerLink):
    """A Verifier in another process."""

    role = Role.VERIFIER
    _service = "Verifier"

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        reply = await self._call(worker_pb2.Command(verify=verify_command_to_pb(command)), "verify")
        try:
            return verify_reply_from_pb(reply.verify, command, self.info)
        except StaleRound:
            self.num_stale += 1
            raise
