"""The interface of token channels, which carry tensors from one worker to the other through the scheduler.

A channel turns a device tensor into the `Tensor` value that messages hold, and back. The scheduler
forwards such values unread. `inline` puts the bytes into the message; a channel over shared memory
would put a handle there and have the same two methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from minedraft.messages import Tensor


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The tensors that a receiver accepts: of this dtype ("int32" or "float32"), with as many dimensions as
    `max_shape` and none larger than there."""

    dtype: str
    max_shape: tuple[int, ...]


class TokenChannel(Protocol):
    """A carrier of tensors, used in the device thread only."""

    def pack(self, tensor: torch.Tensor) -> Tensor:
        """Return the message value of an int32 or float32 tensor."""
        ...

    def unpack(self, tensor: Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        """Return the tensor of a message value, on `device`.

        Raises:
            InvalidRequest: the value does not match `spec`, or its data do not fill its shape.
        """
        ...
