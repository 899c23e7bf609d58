"""What carries tensors between the two workers besides messages, and how it is agreed. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Carrier(str, Enum):
    """What carries a tensor from one worker to the other; the scheduler passes on the values of any."""

    INLINE = "inline"  # the message itself, between any two hosts
    SHM = "shm"  # shared memory of one host
    CUDA_IPC = "cuda_ipc"  # device memory of one host
    DIST = "dist"  # torch.distributed


AUTO_CARRIER = "auto"


class ChannelStep(str, Enum):
    """The steps to a carrier; both workers take each of them before one takes the next."""

    OPEN = "open"  # make the own end
    JOIN = "join"  # receive from the peer's end from now on
    USE = "use"  # send by it from now on


@dataclass(frozen=True, slots=True)
class ChannelOffer:
    """A carrier that a worker can use.

    Attributes:
        host: what both workers must share, as text: host and namespaces.
        device: identity of the GPU that tensors lie on; "": the CPU.
    """

    carrier: Carrier
    host: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    """What a worker must know to receive from the other one; fields that its carrier has no use for are empty.

    Attributes:
        segment, num_bytes: the memory that references point into, see `TensorRef`.
        pid, fd: shm: the process that owns the segment, and its file descriptor there.
        memory_handle, event_handle, device: cuda_ipc: handles of CUDA's, and the identity of their GPU.
        address: dist: HOST:PORT of the rendezvous; "": the other worker has it.
    """

    carrier: Carrier
    segment: int
    num_bytes: int
    pid: int = 0
    fd: int = 0
    memory_handle: bytes = b""
    event_handle: bytes = b""
    device: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class ChannelCommand:
    """One step to a carrier.

    Attributes:
        peer: the end of the other worker; with JOIN.
        least_bytes: smaller tensors are inline; with USE.
    """

    step: ChannelStep
    carrier: Carrier
    peer: ChannelEnd | None = None
    least_bytes: int = 0


def common_carriers(choice: str, ours: Sequence[ChannelOffer], theirs: Sequence[ChannelOffer]) -> list[Carrier]:
    """Return what two workers can both use, the fastest first, without `INLINE`, which they always can.

    Args:
        choice: the name of a carrier, or `AUTO_CARRIER`. That leaves out `DIST` between CPUs: shared memory is
            faster.
    """
    found: list[Carrier] = []
    for carrier in (Carrier.CUDA_IPC, Carrier.DIST, Carrier.SHM):
        pairs = [(a, b) for a in ours for b in theirs if a.carrier is b.carrier is carrier and a.host == b.host]
        if carrier is Carrier.DIST:  # NCCL, where each process has a GPU of its own; gloo, where none has
            pairs = [(a, b) for a, b in pairs if bool(a.device) is bool(b.device)]
            pairs = [(a, b) for a, b in pairs if a.device != b.device or (choice != AUTO_CARRIER and not a.device)]
        if pairs and choice in (AUTO_CARRIER, carrier.value):
            found.append(carrier)
    return found
