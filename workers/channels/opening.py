"""The carriers that this process can offer and open. A carrier's module is imported when it is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minedraft.carriers import Carrier, ChannelOffer
from minedraft.device import Device
from minedraft.errors import ChannelFailed
from minedraft_workers.channels.base import CarrierEnd

if TYPE_CHECKING:
    from minedraft_workers.channels.cudart import Cudart

_LOOPBACK = "127.0.0.1"


class Opener:
    """Opens carriers for a worker on `device`. All are of this host: between hosts nothing would protect them, and
    tensors travel in the messages of the links, which have TLS."""

    def __init__(self, device: Device) -> None:
        self._device = torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")
        self._gpu = str(torch.cuda.get_device_properties(self._device).uuid) if device.kind == "cuda" else ""
        self._pool: tuple[Cudart, int] | None = None

    def offers(self) -> tuple[ChannelOffer, ...]:
        """Return what can carry tensors from and to this process."""
        boot = _boot()
        found = []
        if boot:
            pids = f"{boot} {os.readlink('/proc/self/ns/pid')} uid:{os.getuid()}"
            found.append(ChannelOffer(Carrier.SHM, pids))
            if self._gpu:
                found.append(ChannelOffer(Carrier.CUDA_IPC, pids, self._gpu))
            network = f"{boot} {os.readlink('/proc/self/ns/net')}"
            found.append(ChannelOffer(Carrier.DIST, network, self._gpu))
        return tuple(found)

    def open(self, carrier: Carrier, generations: Iterator[int]) -> CarrierEnd:
        """Return an end.

        Raises:
            ChannelFailed: it cannot be had here.
        """
        if carrier is Carrier.SHM:
            from minedraft_workers.channels.shm import ShmEnd

            return ShmEnd(generations)
        if carrier is Carrier.CUDA_IPC:
            from minedraft_workers.channels.cuda_ipc import POOL_BYTES, CudaIpcEnd
            from minedraft_workers.channels.cudart import Cudart

            if self._pool is None:  # one for the whole life of the process
                cuda = Cudart(self._device)
                self._pool = cuda, cuda.allocate(POOL_BYTES)
            return CudaIpcEnd(generations, *self._pool, self._gpu)
        if carrier is Carrier.DIST:
            from minedraft_workers.channels.dist import DistEnd

            return DistEnd(generations, self._device, _LOOPBACK)
        raise ChannelFailed(f"{carrier.value} is not offered here")


def _boot() -> str:
    """Return the identity of this host since it was booted, "" where /proc does not tell."""
    try:
        os.readlink("/proc/self/ns/pid")
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
