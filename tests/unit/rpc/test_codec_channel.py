"""Messages about carriers come off the wire as they were put on, and what cannot be is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minedraft.carriers import Carrier, ChannelCommand, ChannelEnd, ChannelOffer, ChannelStep
from minedraft.errors import ChannelFailed, InvalidRequest
from minedraft.rpc.codec.channel import (
    MAX_FREED,
    channel_command_from_pb,
    channel_command_to_pb,
    channel_reply_from_pb,
    channel_reply_to_pb,
    freed_from_pb,
    offers_from_pb,
    offers_to_pb,
)
from minedraft.v1 import worker_pb2

SHM = ChannelEnd(Carrier.SHM, (1 << 64) - 1, 4096, pid=77, fd=9)
ENDS = (
    SHM,
    ChannelEnd(Carrier.CUDA_IPC, 5, 1 << 30, memory_handle=bytes(64), event_handle=b"e" * 64, device="GPU-1"),
    ChannelEnd(Carrier.DIST, 6, 1 << 20, address="127.0.0.1:4000"),
)
OPEN = ChannelCommand(ChannelStep.OPEN, Carrier.SHM)
COMMANDS = (
    OPEN,
    *(ChannelCommand(ChannelStep.JOIN, end.carrier, end) for end in ENDS),
    ChannelCommand(ChannelStep.USE, Carrier.DIST, least_bytes=4096),
    ChannelCommand(ChannelStep.USE, Carrier.INLINE),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_step_survives_the_wire(command: ChannelCommand) -> None:
    message = worker_pb2.ChannelRequest.FromString(channel_command_to_pb(command).SerializeToString())
    assert channel_command_from_pb(message) == command


def test_offers_survive_the_wire() -> None:
    offers = (ChannelOffer(Carrier.SHM, "boot 1"), ChannelOffer(Carrier.CUDA_IPC, "boot 1", "GPU-1"))
    assert offers_from_pb(offers_to_pb(offers)) == offers


@pytest.mark.parametrize("end", ENDS)
def test_an_opened_end_survives_the_wire(end: ChannelEnd) -> None:
    command = ChannelCommand(ChannelStep.OPEN, end.carrier)
    assert channel_reply_from_pb(channel_reply_to_pb(end), command) == end


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (replace(OPEN, carrier=Carrier.INLINE), r"channel\.carrier is 1: must be shm, cuda_ipc or dist"),
        (replace(OPEN, peer=SHM), r"channel\.peer is True: must be present with the step join only"),
        (ChannelCommand(ChannelStep.JOIN, Carrier.SHM), r"channel\.peer is False"),
        (ChannelCommand(ChannelStep.JOIN, Carrier.DIST, SHM), r"channel\.peer\.carrier is 'shm': must be dist"),
        (ChannelCommand(ChannelStep.JOIN, Carrier.SHM, replace(SHM, num_bytes=0)), r"channel\.num_bytes is 0"),
        (ChannelCommand(ChannelStep.JOIN, Carrier.SHM, replace(SHM, num_bytes=1 << 41)), r"channel\.num_bytes is"),
        (ChannelCommand(ChannelStep.JOIN, Carrier.SHM, replace(SHM, event_handle=bytes(257))), "event_handle is"),
        (ChannelCommand(ChannelStep.JOIN, Carrier.SHM, replace(SHM, address="x" * 257)), r"channel\.address is"),
    ],
)
def test_a_step_that_cannot_be_is_refused(command: ChannelCommand, names: str) -> None:
    with pytest.raises(InvalidRequest, match=names):
        channel_command_from_pb(channel_command_to_pb(command))


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"channel\.step is 0"):
        channel_command_from_pb(worker_pb2.ChannelRequest())


def test_too_many_offers_or_leases_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="channels is '17 offers'"):
        offers_from_pb(offers_to_pb([ChannelOffer(Carrier.SHM, "")] * 17))
    with pytest.raises(InvalidRequest, match="freed is"):
        freed_from_pb(worker_pb2.DraftRequest(freed=[1] * (MAX_FREED + 1)))
    assert freed_from_pb(worker_pb2.VerifyRequest(freed=[1, (1 << 64) - 1])) == (1, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("end", "command"),
    [
        (None, OPEN),
        (SHM, ChannelCommand(ChannelStep.USE, Carrier.SHM)),
        (SHM, ChannelCommand(ChannelStep.OPEN, Carrier.DIST)),
        (replace(SHM, num_bytes=0), OPEN),
    ],
)
def test_an_answer_that_does_not_fit_the_step_fails_the_carrier(
    end: ChannelEnd | None, command: ChannelCommand
) -> None:
    with pytest.raises(ChannelFailed):
        channel_reply_from_pb(channel_reply_to_pb(end), command)
