"""The scheduler's end of the worker links: drafter and verifier over gRPC.

A link dies as a whole. When the worker's process ends, its connection drops, it fails or it hangs, every pending
and every later call raises `WorkerLost` immediately; only a new link (handshake, new epoch) helps then.
A command that the worker refuses raises `ProtocolError`; a reply that breaks the contract ends the link. Commands
have no deadline, because a forward may take long: a worker that owes an answer sends heartbeats, by which one that is
slow differs from one that hangs (`link_watch.py`), and pings detect a silent host also while it owes none.
"""

from __future__ import annotations

import asyncio
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
    ChannelFailed,
    InternalError,
    InvalidRequest,
    LossCause,
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
from minedraft.rpc.handshake import WorkerCall
from minedraft.rpc.leases import LeaseBook
from minedraft.rpc.link_watch import LinkWatch
from minedraft.security.tls import ClientTls
from minedraft.types import Role
from minedraft.v1 import common_pb2, worker_pb2

# What gRPC says when a ping was not answered: the process is stopped, or its host is gone.
_SILENT = ("ping timeout", "keepalive")

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

    def __init__(self, address: Address, tls: ClientTls | None = None) -> None:
        self.address = address
        self.info: WorkerInfo
        self.stats = LinkStats()
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None
        self.on_channel_failure: Callable[[str], None] = _ignore
        self._leases = LeaseBook()
        self._channel = worker_channel(address, tls)
        self._stream: _Stream | None = None
        self._reader: asyncio.Task[None]
        self._writer: asyncio.Task[None]
        self._watcher: asyncio.Task[None]
        self._last_call = 0
        self._last_configure = 0
        self._callee = WorkerCall(self.role, self._service, address)
        self._watch = LinkWatch(self._callee.name, self._lose)
        self._outbox: deque[bytes] = deque()
        self._has_mail = asyncio.Event()

    @classmethod
    async def connect(
        cls,
        address: Address | str,
        *,
        target_vocab_size: int = 0,
        connect_timeout_s: float = 10.0,
        tls: ClientTls | None = None,
    ) -> Self:
        """Return a link after a handshake, which starts a new epoch of the worker: KV and stored replies dropped.

        Args:
            target_vocab_size: for a drafter: the ids that it proposes are below it; 0 for no limit.
            connect_timeout_s: seconds to wait for the worker to answer and to be free.
            tls: how to call a worker on a network.

        Raises:
            ConfigError: the server at the address is no such worker, speaks another protocol version, or
                is in use by another scheduler.
            WorkerLost: no answer in time.
        """
        link = cls(Address.parse(address) if isinstance(address, str) else address, tls)
        try:
            link.info, num_bytes = await link._callee.shake_hands(link._channel, target_vocab_size, connect_timeout_s)
        except BaseException:
            await link.close()
            raise
        link.stats.wire_bytes += num_bytes
        metadata = ((EPOCH_KEY, str(link.info.epoch)),)
        run = link._channel.stream_stream(f"/minedraft.v1.{cls._service}/Run", None, None)
        link._stream = stream = run(None, metadata=metadata)
        link._reader = asyncio.create_task(link._read_replies(stream), name=f"{cls.role.value}-replies")
        link._writer = asyncio.create_task(link._write_commands(stream), name=f"{cls.role.value}-commands")
        link._watcher = asyncio.create_task(link._watch.run(), name=f"{cls.role.value}-watch")
        return link

    def give_up(self, cause: str) -> None:
        """Declare the link dead although the worker lives: it is of no use."""
        self._lose(cause, LossCause.PROTOCOL)

    async def close(self) -> None:
        """Drop the connection; pending calls raise WorkerLost. Safe to call twice."""
        self._lose("its link was closed here", LossCause.DEAD)
        if self._stream is not None:
            # The reader is not cancelled: an event of its stream could then arrive after the event loop has closed.
            self._stream.cancel()
            self._writer.cancel()
            self._watcher.cancel()
            await asyncio.gather(self._reader, self._writer, self._watcher, return_exceptions=True)
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
            raise self._lose(f"{self.role.value}'s reply: {error}", LossCause.PROTOCOL) from error

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
            WorkerLost: the link is dead, or dies meanwhile; it does if the reply is of another kind.
            ProtocolError: the worker refused the command. StaleRound: the command's round or epoch has passed.
        """
        if self.lost_error is not None:
            raise self._repeat_loss()
        self._last_call += 1
        command.call = call = self._last_call
        data = envelope_to_bytes(command)
        answer = self._watch.begin(call, reply_kind)
        self.stats.num_open += 1
        self._send(data)
        try:
            reply = await answer
        finally:
            self._watch.end(call)
            self.stats.num_open -= 1
        kind = reply.WhichOneof("kind")
        if kind == "refusal":
            raise self._to_error(refusal_from_pb(reply.refusal))
        if kind != reply_kind:
            raise self._lose(f"it answered a {reply_kind} command with {kind}", LossCause.PROTOCOL)
        return reply

    def _send(self, data: bytes) -> None:
        self.stats.wire_bytes += len(data)
        self._outbox.append(data)
        self._has_mail.set()

    async def _read_replies(self, stream: _Stream) -> None:
        """Read until the stream ends. It lives as long as the connection, so its end means a lost worker."""
        try:
            while isinstance(data := await stream.read(), bytes):  # else the end of the stream
                self.stats.wire_bytes += len(data)
                reply = worker_pb2.Reply.FromString(data)
                if reply.channel_failure:
                    self.on_channel_failure(reply.channel_failure[:MAX_FAILURE_CHARS])
                if not reply.call and reply.WhichOneof("kind") == "heartbeat":
                    self._watch.hear(reply.heartbeat.progress)
                elif not self._watch.answer(reply.call, reply):
                    self.stats.num_stale += 1
                    self._leases.free(generations_in(_tensors_in(reply)))
            self._lose("it ended the stream", LossCause.DEAD)
        except grpc.aio.AioRpcError as error:
            details = str(error.details())
            is_silent = any(words in details.lower() for words in _SILENT)
            self._lose(f"{error.code().name}: {details}", LossCause.SILENT if is_silent else LossCause.DEAD)
        except DecodeError as error:
            self._lose(f"it sent bytes that are not a message: {error}", LossCause.PROTOCOL)

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
        """Free the leases of a reply that is dropped. One that breaks the contract ends the link: what else its worker
        says cannot be trusted, and what it holds may be wrong."""
        try:
            yield
        except MineDraftError as error:
            self._leases.free(generations_in(_tensors_in(reply)))
            if isinstance(error, ProtocolError) and not isinstance(error, ChannelFailed):
                raise self._lose(str(error), LossCause.PROTOCOL) from error
            raise

    def _hold(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.reference is not None:
                self._leases.watch(tensor.reference)

    def _to_error(self, refusal: InternalError) -> MineDraftError:
        error: MineDraftError
        if isinstance(refusal, StaleRound):
            self.stats.num_stale += 1
            error = StaleRound(f"{self._name}: {refusal}")
        elif isinstance(refusal, ProtocolError):
            error = type(refusal)(f"{self._name} {refusal}")
        else:
            return self._lose(str(refusal), LossCause.FAILED)
        error.request_id = refusal.request_id
        return error

    def _lose(self, words: str, cause: LossCause) -> WorkerLost:
        """Mark the link as dead, fail every pending call, and return the error."""
        if self.lost_error is None:
            self.lost_error = WorkerLost(f"{self._name} is lost: {words}", cause=cause)
            self.lost.set()
            self._watch.fail_all(self._repeat_loss)
        return self._repeat_loss()

    def _repeat_loss(self) -> WorkerLost:
        """Return the error of the loss, a new one for each who is told: an exception keeps where it was raised."""
        assert self.lost_error is not None, "the link is dead"
        return WorkerLost(str(self.lost_error), cause=self.lost_error.cause)

    @property
    def _name(self) -> str:
        return self._callee.name


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
        self._hold(side for row in reply.proposals if row.q is not None for side in (row.q.ids, row.q.probs))
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
        self._hold(row.features.states for row in checked.verdicts if row.features is not None)
        return checked

    def curtail(self, number: int) -> None:
        if self.lost_error is None:
            message = worker_pb2.CurtailRequest(epoch=self.info.epoch, number=number)
            self._send(envelope_to_bytes(worker_pb2.Command(curtail=message)))


def _tensors_in(reply: worker_pb2.Reply) -> Iterator[common_pb2.Tensor]:
    """Yield every tensor of a worker's reply."""
    for proposal in reply.draft.proposals:
        yield proposal.q.ids
        yield proposal.q.probs
    for verdict in reply.verify.verdicts:
        yield verdict.features.states


def _ignore(cause: str) -> None:
    """Leave a failure unheard: nobody has joined the worker with another one."""
