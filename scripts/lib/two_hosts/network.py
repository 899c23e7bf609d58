"""Two network namespaces with one link between them, which delays and drops packets as `tc netem` does.

Each namespace has a TUN device. A thread carries the IP packets from one to the other: it needs no module of the
kernel, and can be changed while connections are open. The packets are the kernel's own, so TCP sees a real network:
it sends again what is lost.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MAX_PACKET = 65536
_IDLE_S = 0.2
_DEVICE = "wire"


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to packets, in each direction. delay_s: how long each is under way. loss: the share that is lost."""

    delay_s: float = 0.0
    loss: float = 0.0


class Network:
    """Two hosts. Made by `two_hosts`.

    Attributes:
        names: of the namespaces. addresses: of the hosts.
        weather: may be set at any time, for the packets that follow.
        num_packets, num_lost: so far.
    """

    addresses = ("10.99.0.1", "10.99.0.2")

    def __init__(self, names: tuple[str, str], ends: tuple[int, int]) -> None:
        self.names = names
        self.weather = Weather()
        self.num_packets = self.num_lost = 0
        self._ends = ends
        self._random = random.Random(7)
        self._is_closed = False
        self._thread = threading.Thread(target=self._carry, name="wire")
        self._thread.start()

    def inside(self, host: int, *argv: str) -> list[str]:
        """Return the command line that runs a program on a host."""
        return ["ip", "netns", "exec", self.names[host], *argv]

    def close(self) -> None:
        self._is_closed = True
        self._thread.join()
        for end in self._ends:
            os.close(end)

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []  # (arrival, number, end, packet)
        with selectors.DefaultSelector() as selector:
            for index, end in enumerate(self._ends):
                selector.register(end, selectors.EVENT_READ, self._ends[1 - index])
            while not self._is_closed:
                wait_s = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else _IDLE_S
                for key, _ in selector.select(wait_s):
                    self._take(key.fd, key.data, under_way)
                while under_way and under_way[0][0] <= time.monotonic():
                    _, _, end, packet = heapq.heappop(under_way)
                    with suppress(OSError):  # the device is down: lost
                        os.write(end, packet)

    def _take(self, end: int, other: int, under_way: list[tuple[float, int, int, bytes]]) -> None:
        with suppress(BlockingIOError):
            while True:
                packet = os.read(end, _MAX_PACKET)
                weather = self.weather
                self.num_packets += 1
                if self._random.random() < weather.loss:
                    self.num_lost += 1
                    continue
                heapq.heappush(under_way, (time.monotonic() + weather.delay_s, self.num_packets, other, packet))


@contextmanager
def two_hosts() -> Iterator[Network]:
    """Make the namespaces for a block; whatever happens, they are removed with it. Only root can.

    Raises:
        OSError, CalledProcessError: the kernel or its operator does not allow them.
    """
    names = f"minedraft-a-{os.getpid()}", f"minedraft-b-{os.getpid()}"
    network: Network | None = None
    try:
        for name in names:
            _ip("netns", "add", name)
        ends = _open_tun(names[0]), _open_tun(names[1])
        for name, own, other in zip(names, Network.addresses, reversed(Network.addresses), strict=True):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", own, "peer", other, "dev", _DEVICE)
            _ip("-n", name, "link", "set", _DEVICE, "up")
        network = Network(names, ends)
        yield network
    finally:
        if network is not None:
            network.close()
        for name in names:
            if Path("/run/netns", name).exists():
                _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _open_tun(namespace: str) -> int:
    """Return a descriptor of a new TUN device in a namespace. A thread enters it: a namespace is a thread's own."""
    found: list[int | OSError] = []

    def enter_and_open() -> None:
        try:
            with Path("/run/netns", namespace).open("rb") as place:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(place.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"the namespace {namespace} cannot be entered")
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
            found.append(end)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]
