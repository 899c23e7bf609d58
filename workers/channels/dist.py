"""Tensors over torch.distributed, from worker to worker past the scheduler: gloo between CPUs, NCCL between GPUs.

Both ends keep to one order: what is sent is a header (oldest live lease, then generation and bytes of each tensor) and
then the data of all these tensors. A thread receives whatever comes and keeps it until its lease is free; another one
sends what has gathered while it was busy, so that the device thread waits for nobody. Headers go by gloo always: a
receive that waits in NCCL keeps a GPU busy.

Whoever reaches the addresses can interfere, so they are of this host only. NCCL has not been run yet.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore, Work  # type: ignore[attr-defined]

from minedraft.carriers import Carrier, ChannelEnd
from minedraft.errors import ChannelFailed
from minedraft.messages import TensorRef
from minedraft_workers.channels.leases import LeaseRing, bad_reference, slot_bytes

logger = logging.getLogger("minedraft.worker")

WINDOW_BYTES = 32 << 20  # under way or not yet free
JOIN_TIMEOUT_S = 10.0
RECEIVE_TIMEOUT_S = 5.0
_FOR_EVER = timedelta(days=3650)  # until the peer says goodbye, or its connection ends
_BATCH = 32  # tensors behind one header
_BATCH_BYTES = 1 << 20  # after which no more join them
_GOODBYE = -1  # in the place of the oldest lease
_HEADER_TAG, _DATA_TAG = 0, 1


class _Group(Protocol):
    """What both kinds of process groups have."""

    def send(self, tensors: list[torch.Tensor], dstRank: int, tag: int) -> Work: ...

    def recv(self, tensors: list[torch.Tensor], srcRank: int, tag: int) -> Work: ...


class DistEnd:
    """A `CarrierEnd` over two processes of torch.distributed.

    Args:
        device: where tensors lie.
        host: the address that this worker listens on, and reaches the other one from.

    Raises:
        ChannelFailed: it cannot listen there.
    """

    def __init__(self, generations: Iterator[int], device: torch.device, host: str) -> None:
        self._device = device
        self._host = host
        self._ring = LeaseRing(WINDOW_BYTES, generations)
        self._outbox: queue.SimpleQueue[_Parcel | None] = queue.SimpleQueue()
        self._inbox = _Inbox()
        self._peer_segment: int | None = None
        self._failure = ""
        try:
            # torch's own would listen on every network.
            self._socket: socket.socket | None = socket.create_server((host, 0))
        except OSError as error:
            raise ChannelFailed(f"cannot listen on {host}: {error.strerror}") from error
        address = f"{host}:{self._socket.getsockname()[1]}"
        self.end = ChannelEnd(Carrier.DIST, secrets.randbits(64), WINDOW_BYTES, address=address)

    def join(self, peer: ChannelEnd) -> None:
        rank = int(self.end.segment > peer.segment)  # of two random numbers, so that both know who has which rank
        try:
            groups = self._rendezvous(rank, peer.address if rank else self.end.address)
        except (RuntimeError, ValueError, OSError) as error:  # torch's are RuntimeErrors
            raise ChannelFailed(f"no connection to {peer.address}: {str(error).splitlines()[0]}") from error
        self._peer_segment = peer.segment
        for name, task in (("send", self._send_all), ("receive", self._receive_all)):
            threading.Thread(target=task, args=(*groups, 1 - rank), name=f"dist-{name}", daemon=True).start()

    def send(self, data: torch.Tensor) -> TensorRef | None:
        if failure := self._failure or self._inbox.failure:
            raise ChannelFailed(failure)
        lease = self._ring.lease(data.numel())
        if lease is None:
            return None
        oldest = self._ring.oldest or lease.generation
        self._outbox.put(_Parcel(lease.generation, oldest, data.to(self._device, copy=True), self._record()))
        return TensorRef(Carrier.DIST, self.end.segment, 0, lease.generation, lease.num_bytes)

    def receive(self, reference: TensorRef, num_bytes: int) -> torch.Tensor:
        if reference.segment != self._peer_segment:
            raise bad_reference("segment", reference.segment, "that worker has not joined")
        data = self._inbox.wait_for(reference.generation)
        if data.numel() != reference.num_bytes or num_bytes > data.numel():
            limit = f"{data.numel()} have come, the tensor has {num_bytes}"
            raise bad_reference("num_bytes", reference.num_bytes, limit)
        return data[:num_bytes].clone()

    def free(self, generations: Iterable[int]) -> None:
        self._ring.free(generations)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._outbox.put(None)

    def _rendezvous(self, rank: int, address: str) -> tuple[_Group, _Group]:
        """Return the groups of headers and of data, both of the two workers."""
        own, self._socket = self._socket, None
        if own is None:
            raise ValueError("it was joined or closed before")
        host, _, port = address.rpartition(":")
        timeout = timedelta(seconds=JOIN_TIMEOUT_S)
        if rank:
            own.close()
            store = TCPStore(host, int(port), 2, False, timeout, wait_for_workers=False)
        else:
            fd = own.detach()
            store = TCPStore(host, int(port), 2, True, timeout, wait_for_workers=False, master_listen_fd=fd)
        gloo: Any = ProcessGroupGloo  # torch's stubs lack much of it
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=self._host, lazy_init=False)]
        options._timeout = timeout
        headers: _Group = gloo(PrefixStore("headers", store), rank, 2, options)
        if self._device.type == "cpu":
            return headers, headers
        from torch.distributed import ProcessGroupNCCL  # a torch for CPUs has none

        nccl: Any = ProcessGroupNCCL
        return headers, nccl(PrefixStore("data", store), rank, 2, nccl.Options())

    def _send_all(self, headers: _Group, group: _Group, peer: int) -> None:
        """Send until the end is closed, then say goodbye. Runs in a thread."""
        timeout = timedelta(seconds=JOIN_TIMEOUT_S)
        try:
            with self._stream():
                while batch := self._gather():
                    header = torch.zeros(1 + 2 * _BATCH, dtype=torch.int64)
                    table = [number for parcel in batch for number in (parcel.generation, parcel.data.numel())]
                    header[: 1 + len(table)] = torch.tensor([batch[-1].oldest, *table])
                    headers.send([header], peer, _HEADER_TAG).wait(timeout)
                    for parcel in batch:
                        if parcel.written is not None:
                            parcel.written.wait()
                    data = torch.cat([parcel.data for parcel in batch])
                    group.send([data], peer, _DATA_TAG).wait(timeout)
                    self._settle()
            headers.send([torch.full((1 + 2 * _BATCH,), _GOODBYE)], peer, _HEADER_TAG).wait(timeout)
        except RuntimeError as error:
            self._failure = self._failure or f"the other worker cannot be reached: {str(error).splitlines()[0]}"

    def _gather(self) -> list[_Parcel]:
        """Return what goes behind the next header; nothing once the end is closed."""
        batch: list[_Parcel] = []
        parcel = self._outbox.get()
        while parcel is not None:
            batch.append(parcel)
            if len(batch) == _BATCH or sum(each.data.numel() for each in batch) >= _BATCH_BYTES:
                return batch
            try:
                parcel = self._outbox.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._outbox.put(None)  # for the next call
        return batch

    def _receive_all(self, headers: _Group, group: _Group, peer: int) -> None:
        """Receive until the peer says goodbye. Runs in a thread."""
        try:
            with self._stream():
                while True:
                    header = torch.zeros(1 + 2 * _BATCH, dtype=torch.int64)
                    headers.recv([header], peer, _HEADER_TAG).wait(_FOR_EVER)
                    oldest, *table = header.tolist()
                    if oldest == _GOODBYE:
                        self._inbox.fail("the other worker has left")
                        return
                    sizes = {generation: n for generation, n in zip(table[::2], table[1::2], strict=True) if generation}
                    self._inbox.make_room(list(sizes.values()), oldest)
                    data = torch.empty(sum(sizes.values()), dtype=torch.uint8, device=self._device)
                    group.recv([data], peer, _DATA_TAG).wait(_FOR_EVER)
                    self._settle()
                    self._inbox.put(dict(zip(sizes, torch.split(data, list(sizes.values())), strict=True)))
        except (RuntimeError, ChannelFailed) as error:
            self._inbox.fail(f"the other worker is lost: {str(error).splitlines()[0]}")

    def _record(self) -> torch.cuda.Event | None:
        """Return the event after which what the device thread has copied can be sent; None on a CPU."""
        return None if self._device.type == "cpu" else torch.cuda.current_stream(self._device).record_event()

    def _stream(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a stream of this thread's own, beside the forward's."""
        if self._device.type == "cpu":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]

    def _settle(self) -> None:
        if self._device.type != "cpu":
            torch.cuda.current_stream(self._device).synchronize()


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A tensor to send. written: the event after which it can be."""

    generation: int
    oldest: int
    data: torch.Tensor
    written: torch.cuda.Event | None


class _Inbox:
    """What has come, by generation, until its lease is free."""

    def __init__(self) -> None:
        self.failure = ""
        self._changed = threading.Condition()
        self._held: dict[int, torch.Tensor] = {}

    def wait_for(self, generation: int) -> torch.Tensor:
        """Return the data of a lease. Raise ChannelFailed if they do not come in time."""
        with self._changed:
            is_there = self._changed.wait_for(lambda: generation in self._held or self.failure, RECEIVE_TIMEOUT_S)
            if generation in self._held:
                return self._held[generation]
            limit = self.failure if is_there else f"it has not come within {RECEIVE_TIMEOUT_S:g} s"
            raise bad_reference("generation", generation, limit)

    def make_room(self, sizes: list[int], oldest: int) -> None:
        """Forget what is free. Raise ChannelFailed if more than the window would be held, in bytes."""
        with self._changed:
            self._held = {generation: data for generation, data in self._held.items() if generation >= oldest}
            held_bytes = sum(slot_bytes(data.numel()) for data in self._held.values())
        if min(sizes, default=0) < 0 or sum(map(slot_bytes, sizes)) > WINDOW_BYTES - held_bytes:
            raise ChannelFailed(f"{sizes} bytes come beside {held_bytes}, the window has {WINDOW_BYTES}")

    def put(self, parts: dict[int, torch.Tensor]) -> None:
        with self._changed:
            self._held |= parts
            self._changed.notify_all()

    def fail(self, failure: str) -> None:
        """Wake whoever waits: nothing comes any more."""
        with self._changed:
            self.failure = self.failure or failure
            self._changed.notify_all()
