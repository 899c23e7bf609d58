"""A process at the other end of a carrier: it sends what it is told to, over a real process boundary.

`python -m tests.fakes.carrier_peer CARRIER DEVICE` prints its end, reads the other one and joins it; then it answers
each line "NUM_BYTES SEED FREED" with the reference of so many random bytes. All but numbers is protobuf in hexadecimal
digits.
"""

from __future__ import annotations

import itertools
import sys

import torch

from minedraft.carriers import Carrier, ChannelCommand, ChannelEnd, ChannelStep
from minedraft.device import Device
from minedraft.messages import Tensor
from minedraft.rpc.codec.channel import (
    channel_command_from_pb,
    channel_command_to_pb,
    channel_reply_from_pb,
    channel_reply_to_pb,
)
from minedraft.rpc.codec.tensor import tensor_to_pb
from minedraft.v1 import worker_pb2
from minedraft_workers.channels.base import CarrierEnd
from minedraft_workers.channels.opening import Opener


def open_end(carrier: Carrier, device: str) -> CarrierEnd:
    return Opener(Device.parse(device)).open(carrier, itertools.count(1))


def random_bytes(num_bytes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


def end_to_text(end: ChannelEnd) -> str:
    return channel_reply_to_pb(end).SerializeToString().hex()


def end_from_text(text: str, carrier: Carrier) -> ChannelEnd:
    reply = worker_pb2.ChannelReply.FromString(bytes.fromhex(text))
    end = channel_reply_from_pb(reply, ChannelCommand(ChannelStep.OPEN, carrier))
    assert end is not None
    join = channel_command_to_pb(ChannelCommand(ChannelStep.JOIN, carrier, end))
    assert channel_command_from_pb(join).peer == end
    return end


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    carrier, device = Carrier(sys.argv[1]), sys.argv[2]
    end = open_end(carrier, device)
    say(end_to_text(end.end))
    end.join(end_from_text(sys.stdin.readline(), carrier))
    say("joined")
    for line in sys.stdin:
        num_bytes, seed, *freed = map(int, line.split())
        end.free(freed)
        data = random_bytes(num_bytes, seed)
        reference = end.send(data.cuda() if device.startswith("cuda") else data)
        message = tensor_to_pb(Tensor("int32", (1,), reference=reference)) if reference is not None else None
        say("" if message is None else message.SerializeToString().hex())


if __name__ == "__main__":
    main()
