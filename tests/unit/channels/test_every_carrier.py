"""The same tensors over every carrier that this machine has: each arrives with the bits that a message brings."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minedraft.carriers import Carrier, ChannelCommand, ChannelEnd, ChannelStep, common_carriers
from minedraft.device import Device
from minedraft.errors import ChannelFailed
from minedraft_workers.channels.base import TORCH_DTYPES, TensorSpec
from minedraft_workers.channels.inline import InlineChannel
from minedraft_workers.channels.joined import JoinedChannel
from minedraft_workers.channels.opening import Opener

CPU = torch.device("cpu")
SHAPES = ((1, 1), (3, 32), (5, 1728), (64, 333))
CARRIERS = [Carrier.SHM, Carrier.DIST]


def all_steps(opener: Opener, carrier: Carrier) -> tuple[JoinedChannel, JoinedChannel]:
    """Return two channels, joined as the scheduler joins two workers."""
    pair = JoinedChannel(opener.open), JoinedChannel(opener.open)
    ends = [channel.prepare(ChannelCommand(ChannelStep.OPEN, carrier)) for channel in pair]

    def join(channel: JoinedChannel, peer: ChannelEnd | None) -> None:
        channel.prepare(ChannelCommand(ChannelStep.JOIN, carrier, peer))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(join, pair, reversed(ends)))
    for channel in pair:
        channel.prepare(ChannelCommand(ChannelStep.USE, carrier))
    return pair


@pytest.mark.parametrize("carrier", CARRIERS)
def test_all_bits_arrive_as_by_messages(carrier: Carrier) -> None:
    pair = all_steps(Opener(Device.parse("cpu")), carrier)
    generator = torch.Generator().manual_seed(7)
    for (dtype, kind), shape, (ours, theirs) in itertools.product(
        TORCH_DTYPES.items(), SHAPES, (pair, tuple(reversed(pair)))
    ):
        num_bytes = shape[0] * shape[1] * kind.itemsize
        bits = torch.randint(0, 256, (num_bytes,), generator=generator, dtype=torch.uint8)  # NaN and infinities too
        tensor = bits.view(kind).reshape(shape)
        packed, spec = ours.pack(tensor), TensorSpec(dtype, shape)
        assert packed.reference is not None
        assert packed.reference.carrier is carrier
        by_message = InlineChannel().unpack(InlineChannel().pack(tensor), spec, CPU)
        arrived = theirs.unpack(packed, spec, CPU)
        assert arrived.dtype == by_message.dtype
        assert torch.equal(arrived.view(torch.uint8), by_message.view(torch.uint8))
        ours.free([packed.reference.generation])
    assert [channel.num_sent for channel in pair] == [len(TORCH_DTYPES) * len(SHAPES)] * 2
    for channel in pair:
        channel.reset()


def test_this_machine_offers_them() -> None:
    offers = Opener(Device.parse("cpu")).offers()
    assert common_carriers("auto", offers, offers) == [Carrier.SHM]
    assert common_carriers("dist", offers, offers) == [Carrier.DIST]
    assert str(os.getuid()) in offers[0].host, "the memory of another user cannot be mapped"


def test_workers_of_two_hosts_share_no_carrier() -> None:
    """Nothing would protect one."""
    ours = Opener(Device.parse("cpu")).offers()
    theirs = [replace(offer, host=f"another {offer.host}") for offer in ours]
    assert common_carriers("auto", ours, theirs) == common_carriers("dist", ours, theirs) == []
    assert all(offer.host for offer in ours)


def test_a_host_that_does_not_say_who_it_is_offers_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> str:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert Opener(Device.parse("cpu")).offers() == ()


def test_what_is_not_offered_cannot_be_opened() -> None:
    with pytest.raises(ChannelFailed, match="inline is not offered here"):
        Opener(Device.parse("cpu")).open(Carrier.INLINE, itertools.count(1))
