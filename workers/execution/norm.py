"""RMS norms in four operator calls instead of the seven of transformers' model code.

A forward of few rows spends much of its time in small operators, and the norms are the largest part of
them that can be replaced without changing model code.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class FastRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, as x / hypot(|x|, sqrt(n * eps)) * (weight * sqrt(n))."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        size = weight.shape[0]
        self.gain = nn.Parameter(weight * math.sqrt(size), requires_grad=False)
        self.offset = nn.Buffer(weight.new_tensor(math.sqrt(size * eps)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.offset)).mul_(self.gain)


@torch.inference_mode()
def replace_rms_norms(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace, in place, every RMS norm that a `FastRMSNorm` reproduces. Return how many.

    Only in float32: in bfloat16 the intermediate rounding differs from the model's own.
    """
    if dtype != torch.float32:
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__.endswith("RMSNorm")
    ]
    num_replaced = 0
    for parent, name, child in found:
        fast = _reproduce(child)
        if fast is not None:
            setattr(parent, name, fast)
            num_replaced += 1
    return num_replaced


def _reproduce(norm: nn.Module) -> FastRMSNorm | None:
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    # With small values too, where a misplaced eps shows.
    x = torch.linspace(-1, 1.5, 4 * len(weight), device=weight.device).view(4, -1)
    x = x * torch.tensor([[1e-3], [1.0], [30.0], [0.1]], device=weight.device)
    want = norm(x)
    for gain in (weight.detach(), 1 + weight.detach()):  # Gemma's weights are offsets from 1
        fast = FastRMSNorm(gain, eps)
        if torch.allclose(fast(x), want, rtol=1e-5, atol=1e-6):
            return fast
    return None
