"""A joined channel sends by its carrier what is large, and by messages whatever the carrier does not take."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
import torch

from minedraft.carriers import Carrier, ChannelCommand, ChannelEnd, ChannelStep
from minedraft.errors import ChannelFailed, InvalidRequest
from minedraft.messages import Tensor, TensorRef
from minedraft_workers.channels.base import TensorSpec
from minedraft_workers.channels.joined import JoinedChannel

CPU = torch.device("cpu")
SPEC = TensorSpec("float32", (8, 8))
SMALL = torch.arange(4, dtype=torch.float32).reshape(1, 4)
LARGE = torch.arange(16, dtype=torch.float32).reshape(4, 4)
USE = ChannelCommand(ChannelStep.USE, Carrier.SHM, least_bytes=64)


class FakeEnd:
    """An end whose room is a dictionary that both sides see."""

    room: dict[tuple[int, int], torch.Tensor] = {}  # noqa: RUF012 - shared on purpose
    segments = itertools.count(1)

    def __init__(self, generations: Iterator[int]) -> None:
        self.generations = generations
        self.end = ChannelEnd(Carrier.SHM, next(self.segments), 100)
        self.peer: ChannelEnd | None = None
        self.is_full = self.is_broken = self.is_closed = False
        self.freed: list[int] = []

    def join(self, peer: ChannelEnd) -> None:
        self.peer = peer

    def send(self, data: torch.Tensor) -> TensorRef | None:
        if self.is_broken:
            raise ChannelFailed("broken")
        if self.is_full:
            return None
        generation = next(self.generations)
        self.room[self.end.segment, generation] = data.clone()
        return TensorRef(Carrier.SHM, self.end.segment, 0, generation, len(data))

    def receive(self, reference: TensorRef, num_bytes: int) -> torch.Tensor:
        if self.is_broken or self.peer is None or reference.segment != self.peer.segment:
            raise ChannelFailed("broken")
        return self.room[reference.segment, reference.generation][:num_bytes].clone()

    def free(self, generations: Iterable[int]) -> None:
        self.freed.extend(generations)

    def close(self) -> None:
        self.is_closed = True


class Worker:
    """A channel and the ends that it has opened."""

    def __init__(self) -> None:
        self.ends: list[FakeEnd] = []
        self.channel = JoinedChannel(self._open)

    def _open(self, carrier: Carrier, generations: Iterator[int]) -> FakeEnd:
        assert carrier is Carrier.SHM
        self.ends.append(FakeEnd(generations))
        return self.ends[-1]


def join(*workers: Worker) -> None:
    ends = [worker.channel.prepare(ChannelCommand(ChannelStep.OPEN, Carrier.SHM)) for worker in workers]
    for worker, peer in zip(workers, reversed(ends), strict=True):
        worker.channel.prepare(ChannelCommand(ChannelStep.JOIN, Carrier.SHM, peer))
    for worker in workers:
        worker.channel.prepare(USE)


@pytest.fixture
def pair() -> tuple[Worker, Worker]:
    workers = Worker(), Worker()
    join(*workers)
    return workers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_large_tensors_go_by_the_carrier_and_small_ones_in_messages(
    pair: tuple[Worker, Worker], dtype: torch.dtype
) -> None:
    ours, theirs = pair
    for tensor, is_large in ((SMALL, False), (torch.cat([LARGE, LARGE]).t(), True)):
        packed = ours.channel.pack(tensor.to(dtype))
        assert (packed.reference is not None) is is_large
        again = theirs.channel.unpack(packed, TensorSpec(packed.dtype, (8, 8)), CPU)
        assert again.dtype == dtype
        assert torch.equal(again, tensor.to(dtype))
    assert ours.channel.num_sent == 1


def test_the_first_rows_of_a_lease_are_received(pair: tuple[Worker, Worker]) -> None:
    packed = pair[0].channel.pack(LARGE)
    short = Tensor("float32", (2, 4), reference=packed.reference)
    assert torch.equal(pair[1].channel.unpack(short, SPEC, CPU), LARGE[:2])


def test_nothing_goes_by_a_carrier_that_is_not_yet_in_use() -> None:
    worker = Worker()
    worker.channel.prepare(ChannelCommand(ChannelStep.OPEN, Carrier.SHM))
    assert worker.channel.pack(LARGE).reference is None


def test_a_full_carrier_costs_a_message(pair: tuple[Worker, Worker]) -> None:
    pair[0].ends[0].is_full = True
    packed = pair[0].channel.pack(LARGE)
    assert packed.reference is None
    assert torch.equal(pair[1].channel.unpack(packed, SPEC, CPU), LARGE)
    assert (pair[0].channel.num_sent, pair[0].channel.num_full, pair[0].channel.take_failure()) == (0, 1, "")


def test_a_sender_whose_carrier_breaks_goes_on_in_messages_and_says_so_once(pair: tuple[Worker, Worker]) -> None:
    pair[0].ends[0].is_broken = True
    for _ in range(2):
        packed = pair[0].channel.pack(LARGE)
        assert torch.equal(pair[1].channel.unpack(packed, SPEC, CPU), LARGE)
    assert [pair[0].channel.take_failure() for _ in range(2)] == ["broken", ""]


def test_a_receiver_whose_carrier_breaks_says_so_and_takes_messages(pair: tuple[Worker, Worker]) -> None:
    ours, theirs = pair
    packed = ours.channel.pack(LARGE)
    theirs.ends[0].is_broken = True
    with pytest.raises(ChannelFailed, match="broken"):
        theirs.channel.unpack(packed, SPEC, CPU)
    assert theirs.channel.take_failure() == "broken"
    assert theirs.channel.pack(LARGE).reference is None
    ours.channel.prepare(ChannelCommand(ChannelStep.USE, Carrier.INLINE))
    assert torch.equal(theirs.channel.unpack(ours.channel.pack(LARGE), SPEC, CPU), LARGE)


def test_what_is_under_way_still_arrives_after_the_carrier_is_given_up(pair: tuple[Worker, Worker]) -> None:
    packed = pair[0].channel.pack(LARGE)
    for worker in pair:
        worker.channel.prepare(ChannelCommand(ChannelStep.USE, Carrier.INLINE))
    assert torch.equal(pair[1].channel.unpack(packed, SPEC, CPU), LARGE)


def test_leases_are_freed_before_the_next_one_is_made(pair: tuple[Worker, Worker]) -> None:
    channel, end = pair[0].channel, pair[0].ends[0]
    channel.pack(LARGE)
    channel.free([1])
    assert end.freed == []
    channel.pack(LARGE)
    assert end.freed == [1]


def test_another_peer_gets_another_end_with_later_generations(pair: tuple[Worker, Worker]) -> None:
    """So that the scheduler, which knows generations only, frees nothing of the new end by an old number."""
    ours, old = pair[0], pair[0].channel.pack(LARGE)
    join(ours, other := Worker())
    assert ours.ends[0].is_closed
    packed = ours.channel.pack(LARGE)
    assert packed.reference is not None
    assert old.reference is not None
    assert packed.reference.generation > old.reference.generation
    assert torch.equal(other.channel.unpack(packed, SPEC, CPU), LARGE)
    with pytest.raises(ChannelFailed):
        other.channel.unpack(old, SPEC, CPU)


def test_a_reset_closes_the_carrier(pair: tuple[Worker, Worker]) -> None:
    ours, packed = pair[0], pair[1].channel.pack(LARGE)
    ours.channel.reset()
    assert ours.ends[0].is_closed
    assert ours.channel.pack(LARGE).reference is None
    with pytest.raises(ChannelFailed, match="no shm carrier is open here"):
        ours.channel.unpack(packed, SPEC, CPU)
    for step in (USE, ChannelCommand(ChannelStep.JOIN, Carrier.SHM, pair[1].ends[0].end)):
        with pytest.raises(ChannelFailed, match="it is not open"):
            ours.channel.prepare(step)


def test_an_end_that_opens_after_a_reset_is_closed() -> None:
    ends: list[FakeEnd] = []

    def open_end(carrier: Carrier, generations: Iterator[int]) -> FakeEnd:
        channel.reset()  # the scheduler has left while the end was made
        ends.append(FakeEnd(generations))
        return ends[-1]

    channel = JoinedChannel(open_end)
    with pytest.raises(ChannelFailed, match="a new epoch has begun"):
        channel.prepare(ChannelCommand(ChannelStep.OPEN, Carrier.SHM))
    assert ends[0].is_closed


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (TensorSpec("int32", (8, 8)), r"tensor\.dtype is .*float32"),
        (TensorSpec("float32", (3, 8)), r"tensor\.shape is \(4, 4\)"),
        (TensorSpec("float32", (64,)), r"tensor\.shape is \(4, 4\)"),
    ],
)
def test_dtype_and_shape_are_those_that_the_receiver_expects(
    pair: tuple[Worker, Worker], spec: TensorSpec, names: str
) -> None:
    with pytest.raises(InvalidRequest, match=names):
        pair[1].channel.unpack(pair[0].channel.pack(LARGE), spec, CPU)
    assert pair[1].channel.take_failure() == "", "the carrier is not at fault"
