"""The carriers that this process can offer and open. A carrier's module is imported when it is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from minedraft.address import Address
from minedraft.carriers import Carrier, ChannelOffer
from minedraft.device import Device
from minedraft.errors import ChannelFailed
from minedraft_workers.channels.base import CarrierEnd


class Opener:
    """Opens carriers for a worker on `device` that listens at `address`."""

    def __init__(self, device: Device, address: Address) -> None:
        self._device = device
        self._address = address

    def offers(self) -> tuple[ChannelOffer, ...]:
        """Return what can carry tensors from and to this process."""
        found = []
        if host := shared_memory_host():
            found.append(ChannelOffer(Carrier.SHM, host))
        return tuple(found)

    def open(self, carrier: Carrier, generations: Iterator[int]) -> CarrierEnd:
        """Return an end.

        Raises:
            ChannelFailed: it cannot be had here.
        """
        if carrier is Carrier.SHM:
            from minedraft_workers.channels.shm import ShmEnd

            return ShmEnd(generations)
        raise ChannelFailed(f"{carrier.value} is not offered here")


def shared_memory_host() -> str:
    """Return what two processes share that can map each other's memory files: the boot of one host, the namespace of
    process ids, and the user. "" if that cannot be found out."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} uid:{os.getuid()}"
    except OSError:
        return ""
