"""The order of steps over GPU memory, with a fake in CUDA's place. No test here has run on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from minedraft.errors import ChannelFailed
from minedraft_workers.channels import cuda_ipc
from minedraft_workers.channels.cuda_ipc import CudaIpcEnd
from minedraft_workers.channels.leases import slot_bytes

NUM_BYTES = 1 << 12
DATA = torch.arange(200, dtype=torch.uint8)


class FakeGpu:
    """Memory that both workers reach by handles. is_done: whether copies that were begun have ended."""

    def __init__(self) -> None:
        self.memory = bytearray(1 << 16)
        self.next_address = 64
        self.handles: dict[bytes, int] = {}
        self.is_done = True


class FakeCuda:
    """One worker's view of the GPU."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.calls: list[str] = []
        self.mapped: list[int] = []
        self.on_read: Callable[[], None] = lambda: None

    def allocate(self, num_bytes: int) -> int:
        address, self.gpu.next_address = self.gpu.next_address, self.gpu.next_address + num_bytes
        return address

    def memory_handle(self, address: int) -> bytes:
        handle = address.to_bytes(64, "little")
        self.gpu.handles[handle] = address
        return handle

    def event_handle(self) -> bytes:
        return b"event"

    def open_memory(self, handle: bytes) -> int:
        if handle not in self.gpu.handles:
            raise ChannelFailed("cudaIpcOpenMemHandle: invalid argument")
        self.mapped.append(self.gpu.handles[handle])
        return self.mapped[-1]

    def close_memory(self, address: int) -> None:
        self.mapped.remove(address)

    def open_event(self, handle: bytes) -> Callable[[], bool]:
        return lambda: self.gpu.is_done

    def write(self, address: int, header: bytes, data: torch.Tensor) -> None:
        content = header + bytes(data.tolist())
        self.gpu.memory[address : address + len(content)] = content
        self.calls.append("write")

    def read_bytes(self, address: int, num_bytes: int) -> bytes:
        assert self.gpu.is_done, "read before the writer has ended"
        return bytes(self.gpu.memory[address : address + num_bytes])

    def read(self, address: int, num_bytes: int) -> torch.Tensor:
        self.on_read()
        return torch.tensor(list(self.read_bytes(address, num_bytes)), dtype=torch.uint8)


class Worker:
    def __init__(self, gpu: FakeGpu, uuid: str = "GPU-0") -> None:
        self.cuda = FakeCuda(gpu)
        self.pool = self.cuda.allocate(NUM_BYTES)
        self.end = self.open(uuid)

    def open(self, uuid: str = "GPU-0") -> CudaIpcEnd:
        return CudaIpcEnd(itertools.count(1), self.cuda, self.pool, uuid, NUM_BYTES)


@pytest.fixture
def workers() -> tuple[Worker, Worker]:
    gpu = FakeGpu()
    pair = Worker(gpu), Worker(gpu)
    pair[0].end.join(pair[1].end.end)
    pair[1].end.join(pair[0].end.end)
    return pair


def test_bytes_arrive_both_ways(workers: tuple[Worker, Worker]) -> None:
    for ours, theirs in (workers, reversed(workers)):
        reference = ours.end.send(DATA)
        assert reference is not None
        assert torch.equal(theirs.end.receive(reference, 200), DATA)
        assert torch.equal(theirs.end.receive(reference, 7), DATA[:7])


def test_a_copy_that_does_not_end_is_not_waited_for_for_ever(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = workers[0].end.send(DATA)
    assert reference is not None
    workers[0].cuda.gpu.is_done = False
    monkeypatch.setattr(cuda_ipc, "WAIT_TIMEOUT_S", 0.01)
    with pytest.raises(ChannelFailed, match=r"the other worker's copy has not ended within 0\.01 s"):
        workers[1].end.receive(reference, 200)


@pytest.mark.parametrize(
    ("changes", "num_bytes", "names"),
    [
        ({}, 201, "num_bytes is 200"),
        ({"segment": 1}, 200, "segment is 1: no such pool is mapped"),
        ({"generation": 99}, 200, "generation is 99: the slot is now leased as 1"),
        ({"offset": NUM_BYTES - slot_bytes(200) + 64}, 200, "offset is"),
        ({"offset": (1 << 64) - 64}, 200, "offset is"),
    ],
)
def test_a_bad_reference_is_refused_by_name(
    workers: tuple[Worker, Worker], changes: dict[str, int], num_bytes: int, names: str
) -> None:
    reference = workers[0].end.send(DATA)
    assert reference is not None
    with pytest.raises(ChannelFailed, match=rf"tensor\.reference\.{names}"):
        workers[1].end.receive(replace(reference, **changes), num_bytes)  # type: ignore[arg-type]


def test_a_slot_that_is_leased_anew_while_it_is_read_is_refused(workers: tuple[Worker, Worker]) -> None:
    ours, theirs = workers
    reference = ours.end.send(DATA)
    assert reference is not None
    ours.end.free([reference.generation])
    theirs.cuda.on_read = lambda: ours.end.send(DATA + 1) and None
    with pytest.raises(ChannelFailed, match="generation is 1: the slot is now leased as 2"):
        theirs.end.receive(reference, 200)


def test_what_cannot_be_joined_is_unmapped_again(workers: tuple[Worker, Worker]) -> None:
    ours, theirs = workers
    mapped = list(ours.cuda.mapped)
    for peer, names in (
        (replace(theirs.end.end, memory_handle=bytes(64)), "cudaIpcOpenMemHandle"),
        (replace(theirs.end.end, segment=5), "there is no slot"),
        (ours.end.end, "is this worker's own"),
    ):
        with pytest.raises(ChannelFailed, match=names):
            ours.end.join(peer)
    assert ours.cuda.mapped == mapped


def test_a_closed_end_maps_nothing_and_its_successor_has_the_same_pool(workers: tuple[Worker, Worker]) -> None:
    ours, theirs = workers
    reference = theirs.end.send(DATA)
    assert reference is not None
    ours.end.close()
    ours.end.close()
    assert ours.cuda.mapped == []
    with pytest.raises(ChannelFailed, match="no such pool is mapped"):
        ours.end.receive(reference, 200)
    with pytest.raises(ChannelFailed, match="the pool is closed"):
        ours.end.send(DATA)
    again = ours.open()
    assert again.end.memory_handle == ours.end.end.memory_handle
    assert again.end.segment != ours.end.end.segment


def test_a_pool_is_unmapped_after_the_copy_out_of_it(workers: tuple[Worker, Worker]) -> None:
    ours, theirs = workers
    reference = theirs.end.send(DATA)
    assert reference is not None

    def close() -> None:
        ours.end.close()
        assert ours.cuda.mapped, "it is being read"

    ours.cuda.on_read = close
    assert torch.equal(ours.end.receive(reference, 200), DATA)
    assert ours.cuda.mapped == []


def test_a_full_pool_has_no_room(workers: tuple[Worker, Worker]) -> None:
    ours = workers[0]
    assert ours.end.send(torch.zeros(NUM_BYTES // 2, dtype=torch.uint8)) is not None
    assert ours.end.send(torch.zeros(NUM_BYTES // 2, dtype=torch.uint8)) is None
