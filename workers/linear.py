"""Linear layers whose weights are stored the way the CPU's matmul reads them.

torch packs weights anew in every call for a few rows of input; packed once, 2 to 64 rows are 1.3 to 2
times faster. The operators are private to torch (its compiler uses them), so they are probed, and
plain `F.linear` is used where they are missing or do not give the same numbers.
"""

from __future__ import annotations

import time

import torch
from torch import nn

# The row count the packing is laid out for; any count gives right results. Measured over 1 to 64.
_PACKED_FOR_ROWS = 64


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`; same result, weight packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _PACKED_FOR_ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


def pack_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Pack every plain linear layer of the model in place and drop its dense weight; return how many.

    A weight tied to the token embedding stays there in dense form too: looking up rows needs it.
    """
    if not can_pack(dtype):
        return 0
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == dtype
    ]
    for parent, name, child in linears:
        setattr(parent, name, PackedLinear(child))
    return len(linears)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU and torch build have working packed linears for `dtype`."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        linear = nn.Linear(64, 48, dtype=dtype)
        x = torch.linspace(-1, 1, 3 * 64, dtype=dtype).view(3, 64)
        return torch.allclose(PackedLinear(linear)(x), linear(x), rtol=2e-2, atol=2e-2)
    except (AttributeError, RuntimeError):  # no such operator in this build, or it refuses this CPU
        return False


def fastest_dtype(num_rows: int = 8) -> torch.dtype:
    """bfloat16 if this CPU multiplies it faster than float32, both packed; else float32."""
    if not can_pack(torch.bfloat16):
        return torch.float32
    times = {dtype: _time_linear(dtype, num_rows) for dtype in (torch.float32, torch.bfloat16)}
    return min(times, key=lambda dtype: times[dtype])


def _time_linear(dtype: torch.dtype, num_rows: int) -> float:
    # 8 different matrices of 4 million weights: more than most caches hold, so that reading them counts.
    linears = [nn.Linear(2048, 2048, bias=False, dtype=dtype) for _ in range(8)]
    layers = [PackedLinear(linear) if can_pack(dtype) else linear for linear in linears]
    x = torch.ones(num_rows, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for layer in layers:
            layer(x)
        best = min(best, time.perf_counter() - start)
    return best
