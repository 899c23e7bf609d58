"""The token channel: how a tensor gets from one worker to the other through the scheduler.

A carrier turns a device tensor into the `Tensor` value that messages hold, and back. The scheduler
passes such values on unread. Only `inline` (the bytes travel inside the message) is here; a carrier
that shares memory puts a handle there instead and keeps the same two methods.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

from minedraft.errors import InvalidRequest
from minedraft.types import MAX_SPAN_DRAFTS, MAX_TOP_M, Tensor

_NUMPY_DTYPES = {"int32": np.dtype("<i4"), "float32": np.dtype("<f4")}
_DTYPE_NAMES = {torch.int32: "int32", torch.float32: "float32"}


class TokenChannel(Protocol):
    """One carrier, used in the device thread only."""

    def pack(self, tensor: torch.Tensor) -> Tensor:
        """Make a message value of an int32 or float32 tensor."""
        ...

    def unpack(self, tensor: Tensor, device: torch.device) -> torch.Tensor:
        """The tensor again, on `device`.

        Raises:
            InvalidRequest: dtype, shape and data do not belong together.
        """
        ...


class InlineChannel:
    """The data itself, inside the gRPC message; works between hosts."""

    def pack(self, tensor: torch.Tensor) -> Tensor:
        name = _DTYPE_NAMES[tensor.dtype]
        array = tensor.detach().cpu().contiguous().numpy().astype(_NUMPY_DTYPES[name], copy=False)
        return Tensor(name, tuple(tensor.shape), array.tobytes())

    def unpack(self, tensor: Tensor, device: torch.device) -> torch.Tensor:
        dtype = _NUMPY_DTYPES.get(tensor.dtype)
        if dtype is None:
            raise InvalidRequest("tensor.dtype", tensor.dtype, f"must be one of {', '.join(_NUMPY_DTYPES)}")
        limits = (MAX_SPAN_DRAFTS, MAX_TOP_M)
        if len(tensor.shape) != len(limits) or any(
            not 0 < size <= limit for size, limit in zip(tensor.shape, limits, strict=True)
        ):
            raise InvalidRequest("tensor.shape", tensor.shape, f"must be two sizes of at most {limits}")
        if len(tensor.data) != math.prod(tensor.shape) * dtype.itemsize:
            raise InvalidRequest("tensor.data", f"{len(tensor.data)} bytes", f"does not fill shape {tensor.shape}")
        # A copy: torch wants memory it may write, and the message owns its own.
        array = np.frombuffer(tensor.data, dtype).reshape(tensor.shape).astype(dtype.newbyteorder("="))
        return torch.from_numpy(array).to(device)
