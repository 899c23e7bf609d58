"""Keys and values of every request, in blocks of tokens.

Layout per layer: rows of one head's `block_size` tokens, row number = block * num_heads + head, so
that the blocks of a sequence are gathered by whole rows (long copies) into the shape that the
attention matmul needs, `[sequence, head, token, dim]`.

Invariant: every value is finite. A sequence's last block and the padding of a group are read beyond their
length, a chunk's rows read tokens after their own, and all these have probability 0; but 0 * NaN is NaN. A token
whose value is not finite therefore has NaN keys instead (`storable`): every row that sees it is lost, and no other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from minedraft_workers.kernels.base import PagedCache
from minedraft_workers.kernels.tables import LayerShape


class KVCache(PagedCache[int]):
    """The tensors of the cached keys and values.

    `keys[layer]` and `values[layer]` are [(num_blocks + 1) * num_heads, block_size * dim]; the block
    after the last, `padding_block`, has no owner.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(layers, num_blocks, block_size)
        self.layer_caches = range(len(self.layers))  # `ForwardContext` finds a layer's tensors by its number
        self.padding_block = num_blocks
        self.dtype = dtype
        self.device = device

        def rows(shape: LayerShape, dim: int) -> torch.Tensor:
            return _zeros((num_blocks + 1) * shape.num_heads, block_size * dim, dtype, device)

        self.keys = [rows(shape, shape.key_dim) for shape in self.layers]
        self.values = [rows(shape, shape.value_dim) for shape in self.layers]
        # Views of the same memory by token: row (block * num_heads + head) * block_size + offset.
        self.token_keys = [keys.view(-1, shape.key_dim) for keys, shape in zip(self.keys, layers, strict=True)]
        self.token_values = [
            values.view(-1, shape.value_dim) for values, shape in zip(self.values, layers, strict=True)
        ]

    @staticmethod
    def block_bytes(layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
        """Return the bytes that one block takes over all layers."""
        return block_size * dtype.itemsize * sum(shape.num_elements for shape in layers)

    def _copy(self, source: int, target: int) -> None:
        for shape, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            for rows in (keys, values):
                blocks = rows.view(-1, shape.num_heads * rows.shape[1])
                blocks[target] = blocks[source]


def storable(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values, [rows, dim] each, as a cache holds them: of a value that is not finite, zeros where it is
    not, and a key of NaN."""
    lost = (value * 0).sum(-1, keepdim=True)  # 0, or NaN
    return key + lost, value.nan_to_num(0.0, 0.0, 0.0)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return a copy of a host array on the device, without waiting for the device."""
    return bring(torch.from_numpy(array), device)


def bring(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor, of the host or of the device, on the device, without waiting for the device."""
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _zeros(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(num_rows, width, dtype=dtype, device=device)
    # numpy's zeros come from calloc: memory is taken page by page when a block is first used.
    raw = np.zeros(num_rows * width * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(num_rows, width)
