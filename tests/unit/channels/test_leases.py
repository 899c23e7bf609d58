"""Leases never overlap, are made anew when they are free, and a reference to anything else is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minedraft.carriers import Carrier
from minedraft.errors import ChannelFailed
from minedraft.messages import TensorRef
from minedraft_workers.channels.leases import (
    ALIGNMENT,
    HEADER_BYTES,
    Lease,
    LeaseRing,
    check_header,
    check_range,
    pack_header,
    slot_bytes,
)

CAPACITY = 16 * ALIGNMENT
SEGMENT = 0xFEDCBA9876543210
REFERENCE = TensorRef(Carrier.SHM, SEGMENT, 128, 7, 100)


class Ring(RuleBasedStateMachine):
    """A ring beside the set of its live leases."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = LeaseRing(CAPACITY, itertools.count(1), start=ALIGNMENT)
        self.live: dict[int, Lease] = {}
        self.last = 0

    @rule(num_bytes=st.integers(0, CAPACITY))
    def lease(self, num_bytes: int) -> None:
        lease = self.ring.lease(num_bytes)
        if lease is None:
            assert self.live or slot_bytes(num_bytes) > CAPACITY, "an empty ring has room for all that fits in it"
            return
        assert lease.generation > self.last, "never used again"
        assert (lease.num_bytes, lease.offset % ALIGNMENT) == (num_bytes, 0)
        assert ALIGNMENT <= lease.offset <= ALIGNMENT + CAPACITY - slot_bytes(num_bytes)
        self.last = lease.generation
        self.live[lease.generation] = lease

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        some = data.draw(st.sets(st.sampled_from(sorted(self.live)), min_size=1))
        self.ring.free([*some, self.last + 99])
        for generation in some:
            del self.live[generation]

    @rule()
    def free_twice(self) -> None:
        self.ring.free(set(range(self.last)) - self.live.keys())

    @invariant()
    def none_overlap(self) -> None:
        ends = sorted((lease.offset, lease.offset + slot_bytes(lease.num_bytes)) for lease in self.live.values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
        assert self.ring.oldest is None if not self.live else self.ring.oldest <= min(self.live)


TestRing = Ring.TestCase


def test_a_full_ring_has_room_when_its_oldest_lease_is_free() -> None:
    ring = LeaseRing(4 * (HEADER_BYTES + ALIGNMENT), itertools.count(1))
    leases = [ring.lease(ALIGNMENT) for _ in range(4)]
    assert ring.lease(1) is None
    ring.free([2])
    assert ring.lease(1) is None, "the first one still lies before it"
    ring.free([1])
    again = [ring.lease(ALIGNMENT), ring.lease(ALIGNMENT), ring.lease(ALIGNMENT)]
    assert [lease and (lease.offset, lease.generation) for lease in again] == [
        (leases[0] and leases[0].offset, 5),
        (leases[1] and leases[1].offset, 6),
        None,
    ]


def test_the_header_of_a_lease_is_found_good() -> None:
    check_header(pack_header(SEGMENT, Lease(7, 128, 100)), REFERENCE)
    check_range(REFERENCE, 128 + slot_bytes(100), 100)
    check_range(REFERENCE, 128 + slot_bytes(100), 50)  # its first rows


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (pack_header(SEGMENT, Lease(8, 128, 100)), "generation is 7: the slot is now leased as 8"),
        (pack_header(SEGMENT, Lease(7, 128, 99)), "num_bytes is 100: the slot has 99"),
        (pack_header(SEGMENT + 1, Lease(7, 128, 100)), "generation is 7: there is no slot"),
        (bytes(HEADER_BYTES), "generation is 7: there is no slot"),
        ((7).to_bytes(8, "little") * 8, "generation is 7: there is no slot"),  # data of another slot
    ],
)
def test_a_slot_of_another_lease_is_refused(header: bytes, names: str) -> None:
    with pytest.raises(ChannelFailed, match=rf"tensor\.reference\.{names}"):
        check_header(header, REFERENCE)


@pytest.mark.parametrize(
    ("changes", "num_bytes", "names"),
    [
        ({}, 101, "num_bytes is 100: the tensor has 101"),
        ({"offset": 129}, 100, "offset is 129: must be a multiple of 64"),
        ({"offset": 4096 - 64}, 100, "offset is 4032 with 100 bytes: the segment has 4096"),
        ({"offset": (1 << 64) - 64}, 100, "offset is 18446744073709551552 with"),
        ({"num_bytes": 1 << 63}, 100, "offset is 128 with 9223372036854775808 bytes"),
    ],
)
def test_a_reference_out_of_range_is_refused(changes: dict[str, int], num_bytes: int, names: str) -> None:
    with pytest.raises(ChannelFailed, match=rf"tensor\.reference\.{names}"):
        check_range(replace(REFERENCE, **changes), 4096, num_bytes)  # type: ignore[arg-type]
