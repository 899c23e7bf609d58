"""Linear layers whose weights are stored in the layout that the CPU's matmul reads.

torch converts the layout in every call; done once, a forward of a few rows is up to twice as fast.
There are two layouts, both probed because a torch build may lack their operators:

* `HalfStoredLinear` (float32 models): FBGEMM keeps the weight in float16 and multiplies in float32.
  Used if that storage is lossless, as with weights that were saved in bfloat16. Half the bytes are
  read, which bounds a forward of few rows.
* `PackedLinear` (float32 and bfloat16): oneDNN's packed weight in the model's own dtype.
"""

from __future__ import annotations

import time

import torch
from torch import nn

# The row count that oneDNN's packing is optimised for; any count gives right results. The best for 2 to 64 rows.
_PACKED_FOR_ROWS = 64
_FLOAT16_MAX = 65504.0
# Storage errors below this share of the largest weight vanish in float32's own rounding (2**-24).
_MAX_STORAGE_ERROR = 2.0**-32


class PackedLinear(nn.Module):
    """Replaces an `nn.Linear`; the weight is packed by oneDNN in the same dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _PACKED_FOR_ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


class HalfStoredLinear(nn.Module):
    """Replaces a float32 `nn.Linear` whose weight times `scale` fits float16."""

    def __init__(self, linear: nn.Linear, scale: float) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        bias = None if linear.bias is None else linear.bias.detach() * scale
        weight = linear.weight.detach()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight * scale if scale != 1 else weight, bias)
        self._unscale = 1 / scale  # a power of two: exact

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        y: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return y if self._unscale == 1 else y.mul_(self._unscale)


class LinearPacker:
    """Brings plain linear layers of one dtype on the CPU into the best layout that this torch build has."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._can_halve = dtype == torch.float32 and _can_store_half()
        self._can_pack = can_pack(dtype)

    def pack(self, linear: nn.Linear) -> tuple[nn.Module, int]:
        """Return the layer in its new layout, or as it is, and the bytes that reading its weight takes."""
        scale = half_scale(linear.weight) if self._can_halve else None
        if scale is not None:
            return HalfStoredLinear(linear, scale), linear.weight.nbytes // 2
        return PackedLinear(linear) if self._can_pack else linear, linear.weight.nbytes


def pack_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Pack every plain linear layer of the model in place, drop its dense weight, and return the bytes that a
    forward reads less.

    A weight tied to the token embedding is also kept in dense form, which looking up rows needs.
    """
    packer = LinearPacker(dtype)
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == dtype
    ]
    num_saved_bytes = 0
    for parent, name, child in linears:
        packed, num_bytes = packer.pack(child)
        setattr(parent, name, packed)
        num_saved_bytes += child.weight.nbytes - num_bytes
    return num_saved_bytes


def half_scale(weight: torch.Tensor) -> float | None:
    """Return the power of two that scales `weight`, float32, to fit float16 without loss; None if there is none.

    It is 1.0 if the weight needs no scaling.
    """
    if _is_storable(weight, 1.0):
        return 1.0
    largest = float(weight.abs().max())
    if not 0 < largest < float("inf"):  # all zero, or with NaN or Inf, which must be kept
        return None
    scale = 2.0 ** int(torch.tensor(_FLOAT16_MAX / largest).log2().floor())
    return scale if _is_storable(weight, scale) else None


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU and torch build have working oneDNN packed linears for `dtype`."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        linear, x = _probe(dtype)
        return torch.allclose(PackedLinear(linear)(x), linear(x), rtol=2e-2, atol=2e-2)
    except (AttributeError, RuntimeError):  # no such operator in this build, or it refuses this CPU
        return False


def fastest_dtype(num_rows: int = 8) -> torch.dtype:
    """Return bfloat16 if this CPU multiplies it faster than float32, both packed; else float32."""
    if not can_pack(torch.bfloat16):
        return torch.float32
    times = {dtype: _time_linear(dtype, num_rows) for dtype in (torch.float32, torch.bfloat16)}
    return min(times, key=lambda dtype: times[dtype])


def _is_storable(weight: torch.Tensor, scale: float) -> bool:
    largest = weight.abs().max() * scale
    if not bool(largest <= _FLOAT16_MAX):
        return False
    scaled = weight * scale
    return bool(((scaled.half().float() - scaled).abs().max() <= largest * _MAX_STORAGE_ERROR).item())


def _can_store_half() -> bool:
    try:
        linear, x = _probe(torch.float32)
        linear.weight.copy_(linear.weight.half().float())
        return torch.allclose(HalfStoredLinear(linear, 1.0)(x), linear(x), rtol=1e-4, atol=1e-5)
    except (AttributeError, RuntimeError):  # no such operator in this build, or it refuses this CPU
        return False


@torch.no_grad()
def _probe(dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor]:
    linear = nn.Linear(64, 48, dtype=dtype).requires_grad_(False)
    return linear, torch.linspace(-1, 1, 3 * 64, dtype=dtype).view(3, 64)


def _time_linear(dtype: torch.dtype, num_rows: int) -> float:
    # 8 matrices of 4 million weights: more than most caches hold, so that the time includes reading them.
    weights = [torch.rand(2048, 2048).bfloat16().to(dtype) for _ in range(8)]
    linears = nn.Sequential(*(nn.Linear(2048, 2048, bias=False, dtype=dtype) for _ in weights))
    linears.load_state_dict({f"{i}.weight": weight for i, weight in enumerate(weights)})
    pack_linears(linears.requires_grad_(False), dtype)
    x = torch.ones(num_rows, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        linears(x)
        best = min(best, time.perf_counter() - start)
    return best
