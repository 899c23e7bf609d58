"""How a tensor gets from one worker to the other through the scheduler.

A carrier turns a device tensor into the `Tensor` value that messages hold, and back. The scheduler
passes such values on unread. Only `inline` (the bytes travel inside the message) is here; a carrier
that shares memory puts a handle there instead and keeps the same two methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from minedraft.types import Tensor


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the receiver takes: tensors of this dtype ("int32", "float32"), with as many dimensions as
    `max_shape` has and none larger than there."""

    dtype: str
    max_shape: tuple[int, ...]


class TokenChannel(Protocol):
    """One carrier, used in the device thread only."""

    def pack(self, tensor: torch.Tensor) -> Tensor:
        """Make a message value of an int32 or float32 tensor."""
        ...

    def unpack(self, tensor: Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        """The tensor again, on `device`.

        Raises:
            InvalidRequest: it is not what `spec` says, or its data do not fill its shape.
        """
        ...
