"""The envelopes on the stream between scheduler and worker: numbered commands, replies and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from minedraft.errors import ChannelFailed, InternalError, MineDraftError, ProtocolError, StaleRound
from minedraft.rpc.channel import MAX_WORKER_MESSAGE_BYTES
from minedraft.v1 import worker_pb2

_MAX_MESSAGE_CHARS = 1000

_CommandT = TypeVar("_CommandT")
_PbT = TypeVar("_PbT")


def heartbeat_to_pb(progress: int) -> worker_pb2.Reply:
    """Return the envelope of a heartbeat. progress: not negative."""
    return worker_pb2.Reply(heartbeat=worker_pb2.Heartbeat(progress=progress))


def refusal_to_pb(call: int, error: MineDraftError) -> worker_pb2.Reply:
    refusal = worker_pb2.Refusal(
        reason=error.reason, message=str(error)[:_MAX_MESSAGE_CHARS], request_id=error.request_id or 0
    )
    return worker_pb2.Reply(call=call, refusal=refusal)


def refusal_from_pb(message: worker_pb2.Refusal) -> InternalError:
    """Return the error of a refusal. ProtocolError or one of its kinds: the command was not executed, the worker
    lives. A plain InternalError: the worker is exiting."""
    error: InternalError
    if message.reason == StaleRound.reason:
        error = StaleRound(message.message)
    elif message.reason == ChannelFailed.reason:
        error = ChannelFailed(f"refused a command: {message.message}")
    elif message.reason == InternalError.reason:
        error = InternalError(message.message)
    else:
        error = ProtocolError(f"refused a command: {message.message}")
    error.request_id = message.request_id or None
    return error


def encode(to_pb: Callable[[_CommandT], _PbT], command: _CommandT) -> _PbT:
    """Return a command's message.

    Raises:
        ProtocolError: a value that the message cannot hold (a negative id, say). That is our bug, and is
            confined to this command.
    """
    try:
        return to_pb(command)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"a {type(command).__name__} cannot be sent: {error}") from error


def envelope_to_bytes(message: worker_pb2.Command | worker_pb2.Reply) -> bytes:
    """Return the serialised message.

    Raises:
        ProtocolError: the message exceeds the limit of the other side; sending it would end the stream.
    """
    data = message.SerializeToString()
    if len(data) > MAX_WORKER_MESSAGE_BYTES:
        kind = message.WhichOneof("kind")
        raise ProtocolError(f"a {kind} message has {len(data)} bytes, the limit is {MAX_WORKER_MESSAGE_BYTES}")
    return data
