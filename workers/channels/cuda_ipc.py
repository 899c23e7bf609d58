"""Tensors in GPU memory, for workers on one host. NOT YET RUN ON A GPU: its tests put a fake in CUDA's place.

Each worker owns a pool of device memory for its whole life and hands out CUDA's handles of it, and of an event, as
bytes. A sender copies into a leased slot on its stream and records the event; a receiver waits for the event, on the
host and not for ever, and copies out of the peer's pool. Memory comes from CUDA itself and not from torch's allocator,
whose handles cover blocks that it shares out again. Both pools and mappings end with their processes.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

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

logger = logging.getLogger("minedraft.worker")

POOL_BYTES = 64 << 20
WAIT_TIMEOUT_S = 2.0  # for a copy that the sender has begun


class CudaIpc(Protocol):
    """What is used of CUDA, on one device; `minedraft_workers.channels.cudart` has it. Every method raises
    ChannelFailed, naming the call and CUDA's error."""

    def allocate(self, num_bytes: int) -> int:
        """Return the address of device memory, which is never freed: a peer may be reading it."""
        ...

    def memory_handle(self, address: int) -> bytes: ...

    def event_handle(self) -> bytes:
        """Return the handle of this worker's event."""
        ...

    def open_memory(self, handle: bytes) -> int:
        """Return the address at which the peer's memory is mapped."""
        ...

    def close_memory(self, address: int) -> None: ...

    def open_event(self, handle: bytes) -> Callable[[], bool]:
        """Return a function that says whether the peer has done all that it had recorded when it was called."""
        ...

    def write(self, address: int, header: bytes, data: torch.Tensor) -> None:
        """Copy a header and data to device memory on the present stream, and record this worker's event."""
        ...

    def read_bytes(self, address: int, num_bytes: int) -> bytes:
        """Return bytes of device memory, on the host."""
        ...

    def read(self, address: int, num_bytes: int) -> torch.Tensor:
        """Return a copy of device memory, uint8 [num_bytes] on this device, complete when the method returns."""
        ...


class CudaIpcEnd:
    """A `CarrierEnd` over device memory.

    Args:
        pool: address of `num_bytes` of `cuda.allocate`, the same for every end of a process.
        device_uuid: identity of its GPU.

    Raises:
        ChannelFailed: CUDA has no handles of it.
    """

    def __init__(
        self, generations: Iterator[int], cuda: CudaIpc, pool: int, device_uuid: str, num_bytes: int = POOL_BYTES
    ) -> None:
        self._cuda = cuda
        self._segment = secrets.randbits(64)
        self._pool = pool
        self._ring = LeaseRing(num_bytes - HEADER_BYTES, generations, start=HEADER_BYTES)
        self._peer: ChannelEnd | None = None
        self._peer_address = 0
        self._reading = threading.Lock()  # held while the peer's pool is in use
        self._peer_is_done: Callable[[], bool] = lambda: False
        self._is_closed = False
        cuda.write(self._pool, pack_header(self._segment, Lease(0, 0, 0)), torch.empty(0, dtype=torch.uint8))
        self.end = ChannelEnd(
            Carrier.CUDA_IPC,
            self._segment,
            num_bytes,
            memory_handle=cuda.memory_handle(pool),
            event_handle=cuda.event_handle(),
            device=device_uuid,
        )

    def join(self, peer: ChannelEnd) -> None:
        if peer.device == self.end.device and peer.memory_handle == self.end.memory_handle:
            raise ChannelFailed("the other worker's handle is this worker's own")
        address = self._cuda.open_memory(peer.memory_handle)
        try:
            self._peer_is_done = self._cuda.open_event(peer.event_handle)
            self._wait()
            first = self._cuda.read_bytes(address, HEADER_BYTES)  # shows that this GPU can read the other one too
            check_header(first, TensorRef(Carrier.CUDA_IPC, peer.segment, 0, 0, 0))
        except ChannelFailed:
            self._cuda.close_memory(address)
            raise
        self._peer, self._peer_address = peer, address

    def send(self, data: torch.Tensor) -> TensorRef | None:
        if self._is_closed:
            raise ChannelFailed("the pool is closed")
        lease = self._ring.lease(data.numel())
        if lease is None:
            return None
        self._cuda.write(self._pool + lease.offset, pack_header(self._segment, lease), data)
        return TensorRef(Carrier.CUDA_IPC, self._segment, lease.offset, lease.generation, lease.num_bytes)

    def receive(self, reference: TensorRef, num_bytes: int) -> torch.Tensor:
        try:
            with self._reading:
                return self._receive(reference, num_bytes)
        finally:
            self._unmap_if_closed()

    def free(self, generations: Iterable[int]) -> None:
        self._ring.free(generations)

    def close(self) -> None:
        self._is_closed = True
        self._unmap_if_closed()

    def _receive(self, reference: TensorRef, num_bytes: int) -> torch.Tensor:
        if self._peer is None or self._is_closed or reference.segment != self._peer.segment:
            raise bad_reference("segment", reference.segment, "no such pool is mapped")
        check_range(reference, self._peer.num_bytes, num_bytes)
        self._wait()
        slot = self._peer_address + reference.offset
        check_header(self._cuda.read_bytes(slot, HEADER_BYTES), reference)
        data = self._cuda.read(slot + HEADER_BYTES, num_bytes)
        check_header(self._cuda.read_bytes(slot, HEADER_BYTES), reference)  # nothing was written in the meantime
        return data

    def _unmap_if_closed(self) -> None:
        """Close the peer's pool unless it is being read: then the reader comes here next."""
        if self._is_closed and self._reading.acquire(blocking=False):
            try:
                address, self._peer_address, self._peer = self._peer_address, 0, None
                if address:
                    self._cuda.close_memory(address)
            except ChannelFailed as error:  # the mapping then ends with the process
                logger.info("%s", error)
            finally:
                self._reading.release()

    def _wait(self) -> None:
        deadline_s = time.monotonic() + WAIT_TIMEOUT_S
        while not self._peer_is_done():
            if time.monotonic() > deadline_s:
                raise ChannelFailed(f"the other worker's copy has not ended within {WAIT_TIMEOUT_S:g} s")
