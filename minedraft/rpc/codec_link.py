"""The envelopes on the stream between scheduler and worker: numbered commands, replies and refusals."""

from __future__ import annotations

from minedraft.errors import InternalError, ProtocolError, StaleRound
from minedraft.rpc.channel import MAX_WORKER_MESSAGE_BYTES
from minedraft.v1 import worker_pb2

_MAX_MESSAGE_CHARS = 1000


def refusal_to_pb(call: int, reason: str, message: str) -> worker_pb2.Reply:
    return worker_pb2.Reply(call=call, refusal=worker_pb2.Refusal(reason=reason, message=message[:_MAX_MESSAGE_CHARS]))


def refusal_from_pb(message: worker_pb2.Refusal) -> InternalError:
    """A StaleRound or a ProtocolError: the worker lives, the command was not executed. A plain
    InternalError: the worker is going down."""
    if message.reason == StaleRound.reason:
        return StaleRound(message.message)
    if message.reason == InternalError.reason:
        return InternalError(message.message)
    return ProtocolError(f"refused a command: {message.message}")


def envelope_to_bytes(message: worker_pb2.Command | worker_pb2.Reply) -> bytes:
    """Serialise, within the limit that the other side sets.

    Raises:
        ProtocolError: the message is larger; sent anyhow, it would end the whole stream.
    """
    data = message.SerializeToString()
    if len(data) > MAX_WORKER_MESSAGE_BYTES:
        kind = message.WhichOneof("kind")
        raise ProtocolError(f"a {kind} message has {len(data)} bytes, the limit is {MAX_WORKER_MESSAGE_BYTES}")
    return data
