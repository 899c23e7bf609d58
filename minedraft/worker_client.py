"""The scheduler's end of the worker links: drafter and verifier as seams, and over gRPC.

A link dies as a whole. When the worker's process ends, its connection drops, it fails, or it lets a
deadline pass, every pending and every later call raises `WorkerLost` at once; a new link (handshake,
new epoch) is the only way back. A reply that breaks the contract raises `ProtocolError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from minedraft.address import Address
from minedraft.errors import ConfigError, InvalidRequest, MineDraftError, ProtocolError, StaleRound, WorkerLost
from minedraft.rpc import codec
from minedraft.rpc.channel import worker_channel_options
from minedraft.rpc.codec_draft import draft_command_to_pb, draft_reply_from_pb
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

ReplyT = TypeVar("ReplyT", bound=Message)
_Method = Callable[..., "grpc.aio.UnaryUnaryCall[Any, ReplyT]"]

# The worker refused the command and executed nothing: a broken contract, not a dead worker.
_REFUSALS = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED}
)


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
        wire_bytes: serialised requests and replies so far, both ways.
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
        self._pending: set[grpc.aio.UnaryUnaryCall[Any, Any]] = set()
        self._channel = grpc.aio.insecure_channel(address.target, options=worker_channel_options())
        self._watcher: asyncio.Task[None] | None = None
        self._handshake = self._method("Handshake", worker_pb2.HandshakeReply)
        self._release = self._method("Release", worker_pb2.ReleaseReply)

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
        link._watcher = asyncio.create_task(link._watch_connection(), name=f"watch-{cls.role.value}")
        return link

    async def close(self) -> None:
        """Drop the connection; pending calls raise WorkerLost. Safe to call twice."""
        self._lose("its link was closed here")
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def release(self, request_ids: Sequence[int]) -> int:
        """Free KV outside a round; returns the number of free blocks after."""
        message = await self._call(self._release, codec.release_to_pb(self.info.epoch, request_ids))
        try:
            return codec.release_reply_from_pb(message, self.info)
        except InvalidRequest as error:
            raise ProtocolError(f"{self.role.value}'s reply: {error}") from error

    def _method(self, name: str, reply_type: type[ReplyT]) -> _Method[ReplyT]:
        """A multicallable that counts the bytes of what passes through it."""

        def serialize(request: Message) -> bytes:
            data = request.SerializeToString()
            self.wire_bytes += len(data)
            return data

        def deserialize(data: bytes) -> ReplyT:
            self.wire_bytes += len(data)
            return reply_type.FromString(data)

        return self._channel.unary_unary(f"/minedraft.v1.{self._service}/{name}", serialize, deserialize)

    async def _call(self, method: _Method[ReplyT], request: Message) -> ReplyT:
        if self.lost_error is not None:
            raise WorkerLost(str(self.lost_error))
        call = method(request, timeout=self._command_timeout_s)
        self._pending.add(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._to_error(error) from None
        except asyncio.CancelledError:
            # `_lose` cancels calls, not the tasks that wait for them.
            task = asyncio.current_task()
            if self.lost_error is None or (task is not None and task.cancelling()):
                raise
            raise WorkerLost(str(self.lost_error)) from None
        finally:
            self._pending.discard(call)

    async def _shake_hands(self, timeout_s: float) -> WorkerInfo:
        try:
            message = await self._handshake(codec.handshake_to_pb(), timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, *_REFUSALS):
                raise ConfigError(f"{self.role.value} address", str(self.address), str(error.details())) from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise WorkerLost(f"{self._name} does not answer within {timeout_s:g} s") from None
            raise WorkerLost(f"{self._name}: {error.details()}") from None
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

    async def _watch_connection(self) -> None:
        """A worker's connection never closes while it lives, so any other state than ready is its death."""
        ready = grpc.ChannelConnectivity.READY
        while self._channel.get_state() is ready:
            await self._channel.wait_for_state_change(ready)
        self._lose("its connection closed")

    def _to_error(self, error: grpc.aio.AioRpcError) -> MineDraftError:
        if self.lost_error is not None:
            return WorkerLost(str(self.lost_error))
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            self.num_stale += 1
            return StaleRound(f"{self._name}: {details}")
        if code in _REFUSALS:
            return ProtocolError(f"{self._name} refused a command: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._lose(f"no reply within {self._command_timeout_s:g} s")
        return self._lose(f"{code.name}: {details}")

    def _lose(self, cause: str) -> WorkerLost:
        """Fail every pending call, now, in this one place."""
        if self.lost_error is None:
            self.lost_error = WorkerLost(f"{self._name} is lost: {cause}")
            self.lost.set()
            for call in tuple(self._pending):
                call.cancel()
        return WorkerLost(str(self.lost_error))

    @property
    def _name(self) -> str:
        return f"{self.role.value} at {self.address}"


class GrpcDrafter(_WorkerLink):
    """A Drafter in another process."""

    role = Role.DRAFTER
    _service = "Drafter"

    def __init__(self, address: Address, command_timeout_s: float) -> None:
        super().__init__(address, command_timeout_s)
        self._draft = self._method("Draft", worker_pb2.DraftReply)
        self._prefill = self._method("Prefill", worker_pb2.DraftReply)

    async def draft(self, command: DraftCommand) -> DraftReply:
        return self._decode(await self._call(self._draft, draft_command_to_pb(command)), command)

    async def prefill(self, command: DraftCommand) -> DraftReply:
        return self._decode(await self._call(self._prefill, draft_command_to_pb(command)), command)

    def _decode(self, message: worker_pb2.DraftReply, command: DraftCommand) -> DraftReply:
        try:
            return draft_reply_from_pb(message, command, self.info)
        except StaleRound:
            self.num_stale += 1
            raise


class GrpcVerifier(_WorkerLink):
    """A Verifier in another process."""

    role = Role.VERIFIER
    _service = "Verifier"

    def __init__(self, address: Address, command_timeout_s: float) -> None:
        super().__init__(address, command_timeout_s)
        self._verify = self._method("Verify", worker_pb2.VerifyReply)

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        message = await self._call(self._verify, verify_command_to_pb(command))
        try:
            return verify_reply_from_pb(message, command, self.info)
        except StaleRound:
            self.num_stale += 1
            raise
