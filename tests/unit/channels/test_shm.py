"""Shared memory carries bytes as they are, in slots that are used again, and refuses every other reference."""

from __future__ import annotations

import errno
import gc
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minedraft.carriers import Carrier, ChannelEnd
from minedraft.errors import ChannelFailed
from minedraft.messages import TensorRef
from minedraft_workers.channels.leases import slot_bytes
from minedraft_workers.channels.shm import ShmEnd
from tests.support.processes import memory_files, shared_names

NUM_BYTES = 1 << 16
DATA = torch.arange(200, dtype=torch.uint8)


@pytest.fixture
def ends() -> Iterator[tuple[ShmEnd, ShmEnd]]:
    """Two joined ends. The processes of this test are one: nothing else tells them apart."""
    pair = ShmEnd(itertools.count(1), NUM_BYTES), ShmEnd(itertools.count(1), NUM_BYTES)
    pair[0].join(pair[1].end)
    pair[1].join(pair[0].end)
    yield pair
    for end in pair:
        end.close()


def send(end: ShmEnd, data: torch.Tensor) -> TensorRef:
    reference = end.send(data)
    assert reference is not None
    return reference


def test_bytes_arrive_as_they_were_sent_both_ways(ends: tuple[ShmEnd, ShmEnd]) -> None:
    for ours, theirs in (ends, reversed(ends)):
        references = [send(ours, DATA[:n]) for n in (1, 63, 64, 65, 200)]
        for n, reference in zip((1, 63, 64, 65, 200), references, strict=True):
            assert torch.equal(theirs.receive(reference, n), DATA[:n])
        assert torch.equal(theirs.receive(references[-1], 10), DATA[:10]), "the first rows"


def test_what_has_arrived_is_a_copy(ends: tuple[ShmEnd, ShmEnd]) -> None:
    reference = send(ends[0], DATA)
    data = ends[1].receive(reference, 200)
    data += 1
    assert torch.equal(ends[1].receive(reference, 200), DATA)


def test_a_full_segment_leases_again_what_is_free(ends: tuple[ShmEnd, ShmEnd]) -> None:
    ours, theirs = ends
    big = torch.zeros(NUM_BYTES // 4, dtype=torch.uint8)
    first, *_, last = [send(ours, big + n) for n in range(3)]
    assert ours.send(big) is None
    ours.free([first.generation])
    assert torch.equal(theirs.receive(first, len(big)), big), "it lies there until it is leased again"
    again = send(ours, big + 9)
    assert again.offset == first.offset
    assert torch.equal(theirs.receive(again, len(big)), big + 9)
    assert torch.equal(theirs.receive(last, len(big)), big + 2)
    with pytest.raises(ChannelFailed, match=rf"generation is {first.generation}: .* leased as {again.generation}"):
        theirs.receive(first, len(big))


@pytest.mark.parametrize(
    ("changes", "num_bytes", "names"),
    [
        ({}, 201, "num_bytes is 200: the tensor has 201"),
        ({"segment": 1}, 200, "segment is 1: no such segment is mapped"),
        ({"generation": 99}, 200, "generation is 99: the slot is now leased as"),
        ({"num_bytes": 264}, 264, "num_bytes is 264: the slot has 200"),
        ({"offset": 3}, 200, "offset is 3"),
        ({"offset": 128}, 200, "generation is 1: there is no slot"),
        ({"offset": NUM_BYTES - slot_bytes(200) + 64}, 200, "offset is"),
        ({"offset": 1 << 63, "num_bytes": 1 << 63}, 200, "offset is"),
    ],
)
def test_a_bad_reference_is_refused_by_name(
    ends: tuple[ShmEnd, ShmEnd], changes: dict[str, int], num_bytes: int, names: str
) -> None:
    reference = send(ends[0], DATA)
    with pytest.raises(ChannelFailed, match=rf"tensor\.reference\.{names}"):
        ends[1].receive(replace(reference, **changes), num_bytes)  # type: ignore[arg-type]


def test_a_slot_that_is_written_while_it_is_read_is_refused(ends: tuple[ShmEnd, ShmEnd]) -> None:
    ours, theirs = ends
    reference = send(ours, DATA)
    checks = 0

    class Peer:
        """The peer's memory, in which the slot is leased anew after the first look at its header."""

        def __init__(self, memory: object) -> None:
            self.memory = memory

        def __len__(self) -> int:
            return NUM_BYTES

        def __getitem__(self, part: slice) -> object:
            nonlocal checks
            checks += 1
            if checks == 2:
                ours.free([reference.generation])
                send(ours, DATA + 1)
            return self.memory[part]  # type: ignore[index]

    theirs._peer = Peer(theirs._peer)  # type: ignore[assignment]
    with pytest.raises(ChannelFailed, match="generation is 1: the slot is now leased as 2"):
        theirs.receive(reference, 200)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"fd": 987654}, "cannot be opened: No such file or directory"),
        ({"pid": 1 << 30}, "cannot be opened: No such file or directory"),
        ({"num_bytes": 1 << 20}, "is not a sealed segment of 1048576 bytes"),
        ({"segment": 5}, "there is no slot"),
    ],
)
def test_what_is_not_the_peers_segment_is_not_joined(
    ends: tuple[ShmEnd, ShmEnd], changes: dict[str, int], names: str
) -> None:
    with pytest.raises(ChannelFailed, match=names):
        ends[0].join(replace(ends[1].end, **changes))  # type: ignore[arg-type]


def test_a_file_that_can_become_shorter_is_not_joined(ends: tuple[ShmEnd, ShmEnd], tmp_path: Path) -> None:
    """Reading beyond its end would end this process by a signal."""
    with (tmp_path / "segment").open("w+b") as file:
        file.write(bytes(NUM_BYTES))
        file.flush()
        end = ChannelEnd(Carrier.SHM, 0, NUM_BYTES, pid=os.getpid(), fd=file.fileno())
        with pytest.raises(ChannelFailed, match=r"cannot be mapped|not a sealed segment"):
            ends[0].join(end)


def test_a_lack_of_memory_is_an_error_and_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ChannelFailed, match="65536 bytes of shared memory cannot be had: No space left on device"):
        ShmEnd(itertools.count(1), NUM_BYTES)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_closed_end_leaves_neither_file_nor_name() -> None:
    gc.collect()  # maps that the errors of other tests hold
    names, before = shared_names(), memory_files()
    end, other = ShmEnd(itertools.count(1), NUM_BYTES), ShmEnd(itertools.count(1), NUM_BYTES)
    end.join(other.end)
    assert len(memory_files()) > len(before)
    assert shared_names() == names
    for each in (end, other):
        each.close()
        each.close()
    del end, other, each
    assert memory_files() == before
