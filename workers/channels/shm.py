"""Tensors in shared memory, for workers of one user on one host.

Each worker owns an anonymous memory file that it writes; the other one maps it, read-only, through
/proc/PID/fd/FD. The file has no name, so nothing is left of it when its processes have ended, however they end. Its
size is sealed: a reader can never be ended by a file that has become shorter. All of it is allocated at the start, so
that a lack of memory is an error then, and not a signal later.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from minedraft.carriers import Carrier, ChannelEnd
from minedraft.errors import ChannelFailed
from minedraft.messages import TensorRef
from minedraft_workers.channels.leases import (
    HEADER_BYTES,
    Lease,
    LeaseRing,
    bad_reference,
    check_header,
    check_range,
    pack_header,
)

SEGMENT_BYTES = 32 << 20
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class ShmEnd:
    """A `CarrierEnd` over shared memory. Its first slot, which holds nothing, tells a reader that it is the segment.

    Raises:
        ChannelFailed: the memory cannot be had.
    """

    def __init__(self, generations: Iterator[int], num_bytes: int = SEGMENT_BYTES) -> None:
        self._segment = secrets.randbits(64)
        self._fd = -1
        try:
            self._fd = os.memfd_create("minedraft-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.posix_fallocate(self._fd, 0, num_bytes)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
            self._own = _map(self._fd, num_bytes, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            self.close()
            raise ChannelFailed(f"{num_bytes} bytes of shared memory cannot be had: {error.strerror}") from error
        self._write_header(Lease(0, 0, 0))
        self._ring = LeaseRing(num_bytes - HEADER_BYTES, generations, start=HEADER_BYTES)
        self._peer = np.empty(0, np.uint8)
        self._peer_segment: int | None = None
        self.end = ChannelEnd(Carrier.SHM, self._segment, num_bytes, pid=os.getpid(), fd=self._fd)

    def join(self, peer: ChannelEnd) -> None:
        path = f"/proc/{peer.pid}/fd/{peer.fd}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ChannelFailed(f"{path} of the other worker cannot be opened: {error.strerror}") from error
        try:
            if os.fstat(fd).st_size != peer.num_bytes or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ChannelFailed(f"{path} is not a sealed segment of {peer.num_bytes} bytes")
            mapped = _map(fd, peer.num_bytes, mmap.PROT_READ)
        except OSError as error:  # it is no memory file, or cannot be mapped
            raise ChannelFailed(f"{path} of the other worker cannot be mapped: {error.strerror}") from error
        finally:
            os.close(fd)
        check_header(mapped[:HEADER_BYTES].tobytes(), TensorRef(Carrier.SHM, peer.segment, 0, 0, 0))
        self._peer, self._peer_segment = mapped, peer.segment

    def send(self, data: torch.Tensor) -> TensorRef | None:
        lease = self._ring.lease(data.numel())
        if lease is None:
            return None
        self._write_header(lease)
        start = lease.offset + HEADER_BYTES
        self._own[start : start + lease.num_bytes] = data.cpu().numpy()
        return TensorRef(Carrier.SHM, self._segment, lease.offset, lease.generation, lease.num_bytes)

    def receive(self, reference: TensorRef, num_bytes: int) -> torch.Tensor:
        if reference.segment != self._peer_segment:
            raise bad_reference("segment", reference.segment, "no such segment is mapped")
        check_range(reference, len(self._peer), num_bytes)
        start = reference.offset + HEADER_BYTES
        header = self._peer[reference.offset : start]
        check_header(header.tobytes(), reference)
        data = torch.empty(num_bytes, dtype=torch.uint8)
        data.numpy()[:] = self._peer[start : start + num_bytes]
        check_header(header.tobytes(), reference)  # nothing was written there in the meantime
        return data

    def free(self, generations: Iterable[int]) -> None:
        self._ring.free(generations)

    def close(self) -> None:
        # The maps go with their last view: the device thread may be using one now.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write_header(self, lease: Lease) -> None:
        header = np.frombuffer(pack_header(self._segment, lease), np.uint8)
        self._own[lease.offset : lease.offset + HEADER_BYTES] = header


def _map(fd: int, num_bytes: int, protection: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return a file's memory, all of whose pages are there already: no tensor waits for them."""
    return np.frombuffer(mmap.mmap(fd, num_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, protection), np.uint8)
