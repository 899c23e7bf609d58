"""The token channel that puts the data into the gRPC message, which works between any two hosts."""

from __future__ import annotations

import math

import numpy as np
import torch

from minedraft.errors import InvalidRequest
from minedraft.messages import Tensor
from minedraft_workers.channels.base import TensorSpec

_NUMPY_DTYPES = {"int32": np.dtype("<i4"), "float32": np.dtype("<f4")}
_DTYPE_NAMES = {torch.int32: "int32", torch.float32: "float32"}


class InlineChannel:
    """A `TokenChannel` whose values hold the data."""

    def pack(self, tensor: torch.Tensor) -> Tensor:
        name = _DTYPE_NAMES[tensor.dtype]
        array = tensor.detach().cpu().contiguous().numpy().astype(_NUMPY_DTYPES[name], copy=False)
        return Tensor(name, tuple(tensor.shape), array.tobytes())

    def unpack(self, tensor: Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        if tensor.dtype != spec.dtype:
            raise InvalidRequest("tensor.dtype", tensor.dtype, f"must be {spec.dtype}")
        if len(tensor.shape) != len(spec.max_shape) or any(
            not 0 < size <= limit for size, limit in zip(tensor.shape, spec.max_shape, strict=True)
        ):
            limit = f"must be {len(spec.max_shape)} sizes of at most {spec.max_shape}"
            raise InvalidRequest("tensor.shape", tensor.shape, limit)
        dtype = _NUMPY_DTYPES[spec.dtype]
        if len(tensor.data) != math.prod(tensor.shape) * dtype.itemsize:
            raise InvalidRequest("tensor.data", f"{len(tensor.data)} bytes", f"does not fill shape {tensor.shape}")
        # A copy: torch needs writable memory, and that of the message is not.
        array = np.frombuffer(tensor.data, dtype).reshape(tensor.shape).astype(dtype.newbyteorder("="))
        return torch.from_numpy(array).to(device)
