"""The gRPC services of a worker: decode commands from the stream, submit them to the runtime, encode replies.

Nothing here waits for the device: each command is submitted when it arrives, and the callback of its
future puts the reply on the stream.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from minedraft.errors import ChannelFailed, InternalError, MineDraftError, ProtocolError, WorkerInUse
from minedraft.messages import DraftReply, Timing, VerifyReply, WorkerInfo
from minedraft.rpc import error_status
from minedraft.rpc.channel import EPOCH_KEY
from minedraft.rpc.codec import common
from minedraft.rpc.codec.channel import channel_command_from_pb, channel_reply_to_pb, freed_from_pb
from minedraft.rpc.codec.draft import draft_command_from_pb, draft_reply_to_pb
from minedraft.rpc.codec.link import envelope_to_bytes, heartbeat_to_pb, refusal_to_pb
from minedraft.rpc.codec.verify import verify_command_from_pb, verify_reply_to_pb
from minedraft.types import PROTOCOL_VERSION, RoundId
from minedraft.v1 import worker_pb2
from minedraft_workers.rounds.actors import DraftingActor, Executed, VerifyingActor
from minedraft_workers.rounds.device_thread import CommandResult
from minedraft_workers.rounds.following import Follower
from minedraft_workers.rounds.loop_failure import watch_task
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.rounds.session import Session

if TYPE_CHECKING:  # it brings torch, which a worker without a model does not need
    from minedraft_workers.channels.joined import JoinedChannel

logger = logging.getLogger("minedraft.worker")

DRAFTER_SERVICE = "minedraft.v1.Drafter"
VERIFIER_SERVICE = "minedraft.v1.Verifier"

HEARTBEAT_S = 0.5

_Context = grpc.aio.ServicerContext[Any, Any]
_Encode = Callable[[int, Executed[Any]], worker_pb2.Reply]
_Submitted = tuple[asyncio.Future[CommandResult], _Encode]
_Submit = Callable[[worker_pb2.Command], _Submitted | None]  # None: the command has no reply


@dataclass(frozen=True, slots=True)
class _Place:
    """A session with the commands that it takes, and the channel of its actor."""

    session: Session
    submits: dict[str, _Submit]
    channel: JoinedChannel | None


def drafter_handler(
    actor: DraftingActor,
    runtime: WorkerRuntime,
    channel: JoinedChannel | None = None,
    others: Sequence[tuple[DraftingActor, JoinedChannel | None]] = (),
) -> grpc.GenericRpcHandler[Any, Any]:
    """Return the Drafter service.

    Args:
        channel: the actor's; without one, all its tensors travel in messages.
        others: actor and channel of each further session of the runtime.
    """
    owners = zip(runtime.sessions, ((actor, channel), *others), strict=True)
    places = [_Place(session, _drafter_submits(each, session, its), its) for session, (each, its) in owners]
    return _handler(DRAFTER_SERVICE, runtime, places)


def _drafter_submits(actor: DraftingActor, session: Session, channel: JoinedChannel | None) -> dict[str, _Submit]:
    def submit_draft(message: worker_pb2.Command) -> _Submitted:
        command = draft_command_from_pb(message.draft, session.info)
        _free(channel, message.draft)
        reply = session.submit("draft", command.round, lambda: actor.draft(command))
        return reply, partial(_encode_drafts, command.round)

    def submit_prefill(message: worker_pb2.Command) -> _Submitted:
        command = draft_command_from_pb(message.prefill, session.info)
        _free(channel, message.prefill)
        reply = session.submit("prefill", command.round, lambda: actor.prefill(command))
        return reply, partial(_encode_drafts, command.round)

    return {"draft": submit_draft, "prefill": submit_prefill} | _outside_rounds(session, channel)


def verifier_handler(
    actor: VerifyingActor, runtime: WorkerRuntime, channel: JoinedChannel | None = None
) -> grpc.GenericRpcHandler[Any, Any]:
    """Return the Verifier service, of a runtime with one session. channel: as for the Drafter."""

    follower = Follower(actor.verify, actor.release)
    (session,) = runtime.sessions

    def submit_verify(message: worker_pb2.Command) -> _Submitted:
        command = verify_command_from_pb(message.verify, session.info)
        _free(channel, message.verify)
        reply = session.submit("verify", command.round, lambda: follower.verify(command))
        return reply, partial(_encode_verdicts, command.round)

    def curtail(message: worker_pb2.Command) -> None:
        follower.curtail(message.curtail.epoch, message.curtail.number)

    submits = {"verify": submit_verify, "curtail": curtail} | _outside_rounds(session, channel)
    return _handler(VERIFIER_SERVICE, runtime, [_Place(session, submits, channel)])


class _CommandStream:
    """One scheduler's stream of commands."""

    def __init__(self, submits: dict[str, _Submit], channel: JoinedChannel | None, runtime: WorkerRuntime) -> None:
        self._submits = submits
        self._runtime = runtime
        self._num_owed = 0  # answers
        self._channel = channel
        self._outbox: deque[bytes] = deque()
        self._has_mail = asyncio.Event()

    async def run(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        """Serve until the scheduler ends the stream or its connection drops."""
        error: ProtocolError | None = None
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write(context))
            heart = group.create_task(self._beat())
            watch_task(heart, self._runtime.fail)
            try:
                async for data in requests:
                    self._take(worker_pb2.Command.FromString(data))
            except DecodeError as cause:
                error = ProtocolError(f"the stream has bytes that are not a command: {cause}")
            writer.cancel()
            heart.cancel()
        if error is not None:
            logger.error("stream closed: %s", error)
            await error_status.abort(context, error, grpc.StatusCode.INVALID_ARGUMENT)

    def _take(self, message: worker_pb2.Command) -> None:
        kind = message.WhichOneof("kind")
        try:
            submit = self._submits.get(kind or "")
            if submit is None:
                raise ProtocolError(f"a {kind} command is not for this worker")
            submitted = submit(message)
        except MineDraftError as error:
            self._refuse(message.call, error)
            return
        except Exception as error:
            self._runtime.fail(error)
            raise
        if submitted is None:
            return
        reply, encode = submitted
        self._num_owed += 1
        reply.add_done_callback(partial(self._answer, message.call, encode))

    def _answer(self, call: int, encode: _Encode, reply: asyncio.Future[CommandResult]) -> None:
        self._num_owed -= 1
        outcome = reply.result()
        if isinstance(outcome, MineDraftError):
            self._refuse(call, outcome)
            return
        try:
            self._send(encode(call, outcome))
        except ProtocolError as error:
            self._refuse(call, error)

    def _refuse(self, call: int, error: MineDraftError) -> None:
        # The scheduler's log says which number is which client's request.
        about = {} if error.request_id is None else {"request_id": f"number {error.request_id}"}
        logger.warning("command refused: %s", error, extra=about)
        self._send(refusal_to_pb(call, error))

    def _send(self, message: worker_pb2.Reply) -> None:
        if self._channel is not None and (failure := self._channel.take_failure()):
            message.channel_failure = failure
        self._outbox.append(envelope_to_bytes(message))
        self._has_mail.set()

    async def _beat(self) -> None:
        """Tell the scheduler while it waits that the worker lives, and how far its device has got."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._num_owed:
                self._send(heartbeat_to_pb(self._runtime.progress.count))

    async def _write(self, context: _Context) -> None:
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            while self._outbox:
                await context.write(self._outbox.popleft())


def _outside_rounds(session: Session, channel: JoinedChannel | None) -> dict[str, _Submit]:
    """Return the commands that both workers have."""

    def submit_release(message: worker_pb2.Command) -> _Submitted:
        epoch, request_ids = common.release_from_pb(message.release)
        return session.submit_release(epoch, request_ids), _encode_release

    def submit_configure(message: worker_pb2.Command) -> _Submitted:
        return session.submit_configure(common.configure_from_pb(message.configure)), _encode_configure

    submits: dict[str, _Submit] = {"release": submit_release, "configure": submit_configure}
    if channel is not None:
        submits["channel"] = partial(_submit_step, channel)
    return submits


def _handler(service: str, runtime: WorkerRuntime, places: Sequence[_Place]) -> grpc.GenericRpcHandler[Any, Any]:
    last_refusal = ""

    async def handshake(message: worker_pb2.HandshakeRequest, context: _Context) -> worker_pb2.HandshakeReply:
        came_ns = time.monotonic_ns()
        try:
            info = await _begin_epoch(message, runtime, places)
        except MineDraftError as error:
            nonlocal last_refusal
            if str(error) != last_refusal:  # a scheduler that waits for the worker asks five times a second
                logger.warning("handshake refused: %s", error)
                last_refusal = str(error)
            await error_status.abort(context, error, _code_of_refusal(error))
        except Exception as error:
            runtime.fail(error)
            raise
        return common.info_to_pb(info, now_ns := time.monotonic_ns(), now_ns - came_ns)

    async def run(requests: AsyncIterator[bytes], context: _Context) -> None:
        try:
            number = runtime.tenancy.move_in(_epoch_of(context))
        except MineDraftError as error:
            logger.warning("stream refused: %s", error)
            await error_status.abort(context, error, grpc.StatusCode.ABORTED)
        place = places[number]
        try:
            await _CommandStream(place.submits, place.channel, runtime).run(requests, context)
        finally:
            _reset(place.channel)
            place.session.end()
            runtime.tenancy.move_out(number)

    return grpc.method_handlers_generic_handler(
        service,
        {
            "Handshake": grpc.unary_unary_rpc_method_handler(
                handshake,
                request_deserializer=worker_pb2.HandshakeRequest.FromString,
                response_serializer=worker_pb2.HandshakeReply.SerializeToString,
            ),
            "Run": grpc.stream_stream_rpc_method_handler(run),
        },
    )


def _code_of_refusal(error: MineDraftError) -> grpc.StatusCode:
    """Return the code by which a scheduler tells that a worker is in use, or ends, from one that it cannot use."""
    if isinstance(error, WorkerInUse):
        return grpc.StatusCode.ABORTED
    has_crashed = isinstance(error, InternalError) and not isinstance(error, ProtocolError)
    return grpc.StatusCode.UNAVAILABLE if has_crashed else grpc.StatusCode.FAILED_PRECONDITION


async def _begin_epoch(
    message: worker_pb2.HandshakeRequest, runtime: WorkerRuntime, places: Sequence[_Place]
) -> WorkerInfo:
    """Give a scheduler a session. Return when its device is ready for it, not during a forward of the last one: who is
    answered has a device that works, so one that hangs is not taken back."""
    version = common.protocol_version_from_pb(message)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"the scheduler speaks protocol version {version}, this worker {PROTOCOL_VERSION}")
    name, target_vocab_size = common.handshake_from_pb(message)
    number = runtime.tenancy.find_free()
    session = places[number].session
    info = session.start_epoch(target_vocab_size)
    _reset(places[number].channel)
    runtime.tenancy.announce(number, name, info.epoch)
    await session.wait_for_device()
    logger.info("epoch %d begins for %s", info.epoch, name)
    return info


def _submit_step(channel: JoinedChannel, message: worker_pb2.Command) -> _Submitted:
    """Take a step to a carrier in a thread of its own: it may wait for the other worker, and rounds go on."""
    command = channel_command_from_pb(message.channel)
    loop = asyncio.get_running_loop()
    reply: asyncio.Future[CommandResult] = loop.create_future()

    def take() -> None:
        outcome: CommandResult
        try:
            outcome = Executed((channel.prepare(command),), Timing(), 0)
        except MineDraftError as error:
            outcome = error
        except Exception as error:  # of a library: that carrier cannot be had
            outcome = ChannelFailed(f"{type(error).__name__}: {error}")
        with suppress(RuntimeError):  # the loop is closed: the process is ending
            loop.call_soon_threadsafe(reply.set_result, outcome)

    threading.Thread(target=take, name="channel", daemon=True).start()
    return reply, _encode_step


def _encode_step(call: int, done: Executed[Any]) -> worker_pb2.Reply:
    return worker_pb2.Reply(call=call, channel=channel_reply_to_pb(done.rows[0]))


def _reset(channel: JoinedChannel | None) -> None:
    if channel is not None:
        channel.reset()


def _free(channel: JoinedChannel | None, message: worker_pb2.DraftRequest | worker_pb2.VerifyRequest) -> None:
    if channel is not None:
        channel.free(freed_from_pb(message))


def _epoch_of(context: _Context) -> int:
    """Return the epoch that a stream names, 0 if it names none."""
    metadata = context.invocation_metadata() or ()
    text = next((str(value) for key, value in metadata if key == EPOCH_KEY), "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _encode_drafts(round_id: RoundId, call: int, done: Executed[Any]) -> worker_pb2.Reply:
    reply = DraftReply(round_id, done.rows, done.timing, done.num_free_blocks, done.num_not_finite)
    return worker_pb2.Reply(call=call, draft=draft_reply_to_pb(reply))


def _encode_verdicts(round_id: RoundId, call: int, done: Executed[Any]) -> worker_pb2.Reply:
    reply = VerifyReply(round_id, done.rows, done.timing, done.num_free_blocks)
    return worker_pb2.Reply(call=call, verify=verify_reply_to_pb(reply))


def _encode_release(call: int, done: Executed[Any]) -> worker_pb2.Reply:
    return worker_pb2.Reply(call=call, release=common.release_reply_to_pb(done.num_free_blocks))


def _encode_configure(call: int, done: Executed[Any]) -> worker_pb2.Reply:
    return worker_pb2.Reply(call=call, configure=common.configure_reply_to_pb(done.timing))
