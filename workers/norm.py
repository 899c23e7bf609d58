"""RMS norms in one call instead of the six that transformers' model code makes.

A forward of few rows spends a good part of its time in small operators; the norms are the largest
share that can be replaced without touching model code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class FastRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@torch.inference_mode()
def replace_rms_norms(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace, in place, every RMS norm that a `FastRMSNorm` reproduces; return how many.

    float32 only: in bfloat16 the rounding inside differs from the model's own.
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
    # Small values as well, so that a wrong place of eps would show.
    x = torch.linspace(-1, 1.5, 4 * len(weight), device=weight.device).view(4, -1)
    x = x * torch.tensor([[1e-3], [1.0], [30.0], [0.1]], device=weight.device)
    want = norm(x)
    for gain in (weight.detach(), 1 + weight.detach()):  # Gemma's weights are offsets from 1
        fast = FastRMSNorm(gain, eps)
        if torch.allclose(fast(x), want, rtol=1e-5, atol=1e-6):
            return fast
    return None
