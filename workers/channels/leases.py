"""Leases of memory that one worker writes and the other one reads, and the check of a reference to one.

A slot is a header and the data. The header repeats the lease's generation, mixed with the segment's random number, so
that a reader sees a slot that has been leased anew, or was never leased. The message that brings the reference comes
after the data have been written, and the message that frees the lease after they have been read: nothing else orders
the two processes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minedraft.errors import ChannelFailed
from minedraft.messages import TensorRef

ALIGNMENT = 64
HEADER_BYTES = 64
_HEADER = struct.Struct("<QQQ")  # segment xor generation, generation, bytes
_MASK = (1 << 64) - 1


@dataclass(slots=True)
class Lease:
    """A slot: its header is at `offset`, `num_bytes` of data follow it."""

    generation: int
    offset: int
    num_bytes: int
    is_free: bool = False


class LeaseRing:
    """Slots in a ring, leased in order. They are freed in any order; room is leased anew when all slots before it are
    free too.

    Args:
        num_bytes: of the ring, whose first slot is at `start`, a multiple of ALIGNMENT.
        generations: numbers that only grow, over all rings of the process.
    """

    def __init__(self, num_bytes: int, generations: Iterator[int], start: int = 0) -> None:
        self._start = start
        self._end = start + num_bytes
        self._generations = generations
        self._head = start
        self._leases: deque[Lease] = deque()
        self._live: dict[int, Lease] = {}

    @property
    def oldest(self) -> int | None:
        """The generation of the oldest lease that is not free; None if all are."""
        return self._leases[0].generation if self._leases else None

    def lease(self, num_bytes: int) -> Lease | None:
        """Return a lease of `num_bytes` of data, None while there is no room."""
        size = slot_bytes(num_bytes)
        if not self._leases:
            self._head = self._start
        limit = self._end
        if self._leases and (tail := self._leases[0].offset) < self._head:  # free: head to end, and start to tail
            if self._head + size > self._end:
                self._head, limit = self._start, tail
        elif self._leases:
            limit = tail
        if self._head + size > limit:
            return None
        lease = Lease(next(self._generations), self._head, num_bytes)
        self._head += size
        self._leases.append(lease)
        self._live[lease.generation] = lease
        return lease

    def free(self, generations: Iterable[int]) -> None:
        """End leases; numbers of others are ignored."""
        for generation in generations:
            if (lease := self._live.pop(generation, None)) is not None:
                lease.is_free = True
        while self._leases and self._leases[0].is_free:
            self._leases.popleft()


def slot_bytes(num_bytes: int) -> int:
    """Return the bytes of a slot with `num_bytes` of data."""
    return HEADER_BYTES + -(-num_bytes // ALIGNMENT) * ALIGNMENT


def pack_header(segment: int, lease: Lease) -> bytes:
    """Return the header of a lease, HEADER_BYTES."""
    header = _HEADER.pack((segment ^ lease.generation) & _MASK, lease.generation, lease.num_bytes)
    return header.ljust(HEADER_BYTES, b"\0")


def check_range(reference: TensorRef, segment_bytes: int, num_bytes: int) -> None:
    """Raise ChannelFailed unless the lease lies inside the segment and has `num_bytes` of data."""
    if num_bytes > reference.num_bytes:
        raise bad_reference("num_bytes", reference.num_bytes, f"the tensor has {num_bytes}")
    if reference.offset % ALIGNMENT:
        raise bad_reference("offset", reference.offset, f"must be a multiple of {ALIGNMENT}")
    if reference.offset + slot_bytes(reference.num_bytes) > segment_bytes:
        value = f"{reference.offset} with {reference.num_bytes} bytes"
        raise bad_reference("offset", value, f"the segment has {segment_bytes}")


def check_header(header: bytes, reference: TensorRef) -> None:
    """Raise ChannelFailed unless a slot's header is that of the reference."""
    mixed, generation, num_bytes = _HEADER.unpack_from(header)
    if mixed != (reference.segment ^ generation) & _MASK:
        raise bad_reference("generation", reference.generation, "there is no slot")
    if generation != reference.generation:
        raise bad_reference("generation", reference.generation, f"the slot is now leased as {generation}")
    if num_bytes != reference.num_bytes:
        raise bad_reference("num_bytes", reference.num_bytes, f"the slot has {num_bytes}")


def bad_reference(field: str, value: object, limit: str) -> ChannelFailed:
    """Return the error of a reference that cannot be followed."""
    return ChannelFailed(f"tensor.reference.{field} is {value}: {limit}")
