"""Messages about carriers of tensors: what workers offer, the steps to a carrier, and leases that are free."""

from __future__ import annotations

from collections.abc import Sequence

from minedraft.carriers import ChannelCommand, ChannelEnd, ChannelOffer, ChannelStep
from minedraft.errors import ChannelFailed, InvalidRequest
from minedraft.rpc.codec.tensor import CARRIER_TO_PB, MAX_SEGMENT_BYTES, carrier_from_pb
from minedraft.types import MAX_SPANS
from minedraft.v1 import worker_pb2

MAX_FREED = 64 * MAX_SPANS  # leases in one command; the rest waits for the next one
MAX_FAILURE_CHARS = 1000
_MAX_OFFERS = 16
_MAX_TEXT_CHARS = 256
_MAX_HANDLE_BYTES = 256  # CUDA's have 64

_STEP_TO_PB = {
    ChannelStep.OPEN: worker_pb2.ChannelRequest.STEP_OPEN,
    ChannelStep.JOIN: worker_pb2.ChannelRequest.STEP_JOIN,
    ChannelStep.USE: worker_pb2.ChannelRequest.STEP_USE,
}
_STEP_FROM_PB = {value: step for step, value in _STEP_TO_PB.items()}


def offers_to_pb(offers: Sequence[ChannelOffer]) -> list[worker_pb2.ChannelOffer]:
    return [
        worker_pb2.ChannelOffer(carrier=CARRIER_TO_PB[offer.carrier], host=offer.host, device=offer.device)
        for offer in offers
    ]


def offers_from_pb(messages: Sequence[worker_pb2.ChannelOffer]) -> tuple[ChannelOffer, ...]:
    """Return a worker's offers. Raise InvalidRequest for one that cannot be."""
    if len(messages) > _MAX_OFFERS:
        raise InvalidRequest("channels", f"{len(messages)} offers", f"at most {_MAX_OFFERS}")
    for message in messages:
        _check_text("channels.host", message.host)
        _check_text("channels.device", message.device)
    return tuple(
        ChannelOffer(carrier_from_pb(message.carrier, "channels.carrier"), message.host, message.device)
        for message in messages
    )


def channel_command_to_pb(command: ChannelCommand) -> worker_pb2.ChannelRequest:
    return worker_pb2.ChannelRequest(
        step=_STEP_TO_PB[command.step],
        carrier=CARRIER_TO_PB[command.carrier],
        peer=None if command.peer is None else _end_to_pb(command.peer),
        least_bytes=command.least_bytes,
    )


def channel_command_from_pb(message: worker_pb2.ChannelRequest) -> ChannelCommand:
    """Return the command, in a worker. Raise InvalidRequest for one that cannot be."""
    step = _STEP_FROM_PB.get(message.step)
    if step is None:
        raise InvalidRequest("channel.step", int(message.step), "must be open, join or use")
    carrier = carrier_from_pb(message.carrier, "channel.carrier", with_inline=step is ChannelStep.USE)
    if message.HasField("peer") is not (step is ChannelStep.JOIN):
        raise InvalidRequest("channel.peer", message.HasField("peer"), "must be present with the step join only")
    peer = _end_from_pb(message.peer) if message.HasField("peer") else None
    if peer is not None and peer.carrier is not carrier:
        raise InvalidRequest("channel.peer.carrier", peer.carrier.value, f"must be {carrier.value}")
    return ChannelCommand(step, carrier, peer, message.least_bytes)


def channel_reply_to_pb(end: ChannelEnd | None) -> worker_pb2.ChannelReply:
    return worker_pb2.ChannelReply(end=None if end is None else _end_to_pb(end))


def channel_reply_from_pb(message: worker_pb2.ChannelReply, command: ChannelCommand) -> ChannelEnd | None:
    """Return the end that a worker has opened, None after another step.

    Raises:
        ChannelFailed: it is not what the command asked for, or a value breaks a limit.
    """
    try:
        end = _end_from_pb(message.end) if message.HasField("end") else None
    except InvalidRequest as error:
        raise ChannelFailed(str(error)) from error
    if (command.step is ChannelStep.OPEN) is (end is None) or (end is not None and end.carrier is not command.carrier):
        raise ChannelFailed(f"the worker answered {command.step.value} {command.carrier.value} with {end}")
    return end


def freed_from_pb(message: worker_pb2.DraftRequest | worker_pb2.VerifyRequest) -> tuple[int, ...]:
    """Return the generations of leases that are free."""
    if len(message.freed) > MAX_FREED:
        raise InvalidRequest("freed", f"{len(message.freed)} leases", f"at most {MAX_FREED} are allowed")
    return tuple(message.freed)


def _end_to_pb(end: ChannelEnd) -> worker_pb2.ChannelEnd:
    return worker_pb2.ChannelEnd(
        carrier=CARRIER_TO_PB[end.carrier],
        segment=end.segment,
        num_bytes=end.num_bytes,
        pid=end.pid,
        fd=end.fd,
        memory_handle=end.memory_handle,
        event_handle=end.event_handle,
        device=end.device,
        address=end.address,
    )


def _end_from_pb(message: worker_pb2.ChannelEnd) -> ChannelEnd:
    if not 1 <= message.num_bytes <= MAX_SEGMENT_BYTES:
        raise InvalidRequest("channel.num_bytes", message.num_bytes, f"must be in [1, {MAX_SEGMENT_BYTES}]")
    for field, handle in (("memory_handle", message.memory_handle), ("event_handle", message.event_handle)):
        if len(handle) > _MAX_HANDLE_BYTES:
            raise InvalidRequest(f"channel.{field}", f"{len(handle)} bytes", f"at most {_MAX_HANDLE_BYTES}")
    _check_text("channel.device", message.device)
    _check_text("channel.address", message.address)
    return ChannelEnd(
        carrier=carrier_from_pb(message.carrier, "channel.carrier"),
        segment=message.segment,
        num_bytes=message.num_bytes,
        pid=message.pid,
        fd=message.fd,
        memory_handle=message.memory_handle,
        event_handle=message.event_handle,
        device=message.device,
        address=message.address,
    )


def _check_text(field: str, text: str) -> None:
    if len(text) > _MAX_TEXT_CHARS:
        raise InvalidRequest(field, text, f"at most {_MAX_TEXT_CHARS} characters")
