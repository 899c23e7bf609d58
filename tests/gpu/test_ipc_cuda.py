"""Carriers between two processes on one card, byte by byte. Not run on hardware by the people who wrote it; shared
memory shows on any machine that the test itself works."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from minedraft.carriers import Carrier
from minedraft.errors import ChannelFailed
from minedraft.messages import TensorRef
from minedraft.rpc.codec.tensor import tensor_from_pb
from minedraft.v1 import common_pb2
from minedraft_workers.channels.base import CarrierEnd
from tests.fakes.carrier_peer import end_from_text, end_to_text, open_end, random_bytes

NUM_LEASES = 1000
LARGEST = 1 << 20
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.parametrize(
        ("carrier", "device"),
        [
            pytest.param(
                Carrier.CUDA_IPC,
                "cuda:0",
                marks=[
                    pytest.mark.gpu,
                    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
                ],
            ),
            (Carrier.SHM, "cpu"),
        ],
    ),
]


class Peer:
    """The other process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, line: str = "") -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the other process has ended"
        return answer.strip()

    def send(self, num_bytes: int, seed: int, freed: list[int]) -> TensorRef | None:
        answer = self.ask(" ".join(map(str, [num_bytes, seed, *freed])))
        if not answer:
            return None
        message = common_pb2.Tensor.FromString(bytes.fromhex(answer))
        return tensor_from_pb(message, "int32", (1,), "reference").reference


@contextmanager
def joined(carrier: Carrier, device: str) -> Iterator[tuple[CarrierEnd, Peer]]:
    end = open_end(carrier, device)
    argv = [sys.executable, "-m", "tests.fakes.carrier_peer", carrier.value, device]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            peer = Peer(process)
            end.join(end_from_text(peer.ask(), carrier))
            assert peer.ask(end_to_text(end.end)) == "joined"
            yield end, peer
        finally:
            process.kill()
            end.close()


def test_a_thousand_leases_arrive_byte_by_byte(
    carrier: Carrier, device: str, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(5)
    live: list[tuple[TensorRef, int, int]] = []
    freed: list[int] = []
    received_s, num_full = 0.0, 0
    with joined(carrier, device) as (end, peer):
        for seed in range(NUM_LEASES):
            num_bytes = 3 + int(LARGEST ** rng.random())
            reference = peer.send(num_bytes, seed, freed)
            freed = []
            if reference is None:  # full: some of what has arrived is free
                num_full += 1
            else:
                live.append((reference, num_bytes, seed))
            if reference is None or len(live) > 40:
                rng.shuffle(live)
                while len(live) > 5:
                    reference, num_bytes, seed = live.pop()
                    started_s = time.perf_counter()
                    data = end.receive(reference, num_bytes)
                    received_s += time.perf_counter() - started_s
                    assert torch.equal(data.cpu(), random_bytes(num_bytes, seed))
                    freed.append(reference.generation)
    record_property("us_a_lease", received_s / NUM_LEASES * 1e6)
    record_property("num_full", num_full)


def test_a_killed_sender_costs_an_error_at_most(carrier: Carrier, device: str) -> None:
    with joined(carrier, device) as (end, peer):
        reference = peer.send(1000, 1, [])
        assert reference is not None
        assert torch.equal(end.receive(reference, 1000).cpu(), random_bytes(1000, 1))
        peer.process.kill()
        peer.process.wait()
        started_s = time.monotonic()
        try:
            data = end.receive(reference, 1000)
        except ChannelFailed:
            pass
        else:
            assert torch.equal(data.cpu(), random_bytes(1000, 1)), "its memory is mapped here still"
        assert time.monotonic() - started_s < 5
