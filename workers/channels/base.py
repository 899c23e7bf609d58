"""The interface of token channels, which carry tensors from one worker to the other through the scheduler.

A channel turns a device tensor into the `Tensor` value that messages hold, and back. The scheduler
forwards such values unread. `inline` puts the bytes into the message; the others put a reference there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from minedraft.carriers import ChannelEnd
from minedraft.errors import InvalidRequest
from minedraft.messages import Tensor, TensorRef

TORCH_DTYPES = {"int32": torch.int32, "float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The tensors that a receiver accepts: of this dtype ("int32", "float32" or "bfloat16"), with as many dimensions
    as `max_shape` and none larger than there."""

    dtype: str
    max_shape: tuple[int, ...]


class TokenChannel(Protocol):
    """A carrier of tensors, used in the device thread only."""

    def pack(self, tensor: torch.Tensor) -> Tensor:
        """Return the message value of an int32, float32 or bfloat16 tensor.

        Raises:
            InvalidRequest: it has another dtype.
        """
        ...

    def unpack(self, tensor: Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        """Return the tensor of a message value, on `device`.

        Raises:
            InvalidRequest: the value does not match `spec`, or its data do not fill its shape.
            ChannelFailed: its data are not in the message, and cannot be had.
        """
        ...


class CarrierEnd(Protocol):
    """A worker's end of a carrier, which moves bytes: it writes to memory, or a connection, that the other worker
    reads, and the other way round.

    Attributes:
        end: what the other worker must know to join.
    """

    end: ChannelEnd

    def join(self, peer: ChannelEnd) -> None:
        """Receive from the other worker's end from now on. It may wait for the other worker to do the same.

        Raises:
            ChannelFailed: it cannot be reached.
        """
        ...

    def send(self, data: torch.Tensor) -> TensorRef | None:
        """Lease room and send bytes, uint8 [n] on any device; None while there is no room. Device thread.

        Raises:
            ChannelFailed: the carrier has failed.
        """
        ...

    def receive(self, reference: TensorRef, num_bytes: int) -> torch.Tensor:
        """Return the first `num_bytes` of a lease of the other worker, uint8 [n], a copy. Device thread.

        Raises:
            ChannelFailed: there is no such lease, or the carrier has failed.
        """
        ...

    def free(self, generations: Iterable[int]) -> None:
        """End leases of this worker. Device thread."""
        ...

    def close(self) -> None:
        """Give back what the end holds. Safe to call twice, and while the device thread uses the end."""
        ...


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in messages. Raise InvalidRequest if none of them can have it."""
    name = _DTYPE_NAMES.get(dtype)
    if name is None:
        raise InvalidRequest("tensor.dtype", dtype, f"must be one of {', '.join(TORCH_DTYPES)}")
    return name


def check_tensor(tensor: Tensor, spec: TensorSpec) -> None:
    """Raise InvalidRequest unless dtype and shape are those that the receiver accepts."""
    if tensor.dtype != spec.dtype:
        raise InvalidRequest("tensor.dtype", tensor.dtype, f"must be {spec.dtype}")
    if len(tensor.shape) != len(spec.max_shape) or any(
        not 0 < size <= limit for size, limit in zip(tensor.shape, spec.max_shape, strict=True)
    ):
        limit = f"must be {len(spec.max_shape)} sizes of at most {spec.max_shape}"
        raise InvalidRequest("tensor.shape", tensor.shape, limit)
