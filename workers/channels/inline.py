"""The token channel that puts the data into the gRPC message, which works between any two hosts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from minedraft.errors import ChannelFailed, InvalidRequest
from minedraft.messages import ITEM_BYTES, Tensor
from minedraft_workers.channels.base import TensorSpec, check_tensor, dtype_name

# numpy has no bfloat16: its bits travel as integers of the same size.
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "int32": np.dtype("<i4"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<i2"),
}


class InlineChannel:
    """A `TokenChannel` whose values hold the data."""

    def pack(self, tensor: torch.Tensor) -> Tensor:
        name = dtype_name(tensor.dtype)
        host = tensor.detach().cpu().contiguous()
        bits = host.view(torch.int16) if name == "bfloat16" else host
        return Tensor(name, tuple(tensor.shape), bits.numpy().astype(_NUMPY_DTYPES[name], copy=False).tobytes())

    def unpack(self, tensor: Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        check_tensor(tensor, spec)
        if tensor.reference is not None:
            raise ChannelFailed(f"no {tensor.reference.carrier.value} carrier is open here")
        if len(tensor.data) != math.prod(tensor.shape) * ITEM_BYTES[spec.dtype]:
            raise InvalidRequest("tensor.data", f"{len(tensor.data)} bytes", f"does not fill shape {tensor.shape}")
        dtype = _NUMPY_DTYPES[spec.dtype]
        # A copy: torch needs writable memory, and that of the message is not.
        array = np.frombuffer(tensor.data, dtype).reshape(tensor.shape).astype(dtype.newbyteorder("="))
        host = torch.from_numpy(array)
        return (host.view(torch.bfloat16) if spec.dtype == "bfloat16" else host).to(device)
