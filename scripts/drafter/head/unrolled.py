"""Attention of a head that is trained on its own outputs.

A head drafts with the target's states up to some position, and with its own output after it. In training, step s runs
every position as if it were the s-th draft: its query sees the keys that step 0 made at positions up to i - s, the key
of step 1 at i - s + 1, and so on up to its own key. The first part is ordinary causal attention on shifted queries;
the others are one key for each query, so the sums are put together by their normalisers, as in ring attention
(Liu et al. 2023), and the result is exact.
"""

from __future__ import annotations

from typing import Any

import torch

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class UnrolledAttention(torch.autograd.Function):
    """softmax over [causal keys, one key of each later step]; all tensors are [batch, heads, length, head_dim]."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own, of no public type)
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *later: torch.Tensor,
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: of positions s to the end, so that query j sees the keys 0 to j.
            key, value: of step 0, as many as there are queries.
            later: keys, then values, of the later steps; element j is what query j sees.
        """
        keys, values = later[: len(later) // 2], later[len(later) // 2 :]
        scale = query.shape[-1] ** -0.5
        output, normaliser = _forward(query, key, value, 0.0, True)
        if keys:
            scores = torch.stack([(query * other).sum(-1, dtype=torch.float32) * scale for other in keys])
            total = torch.logsumexp(torch.cat([normaliser[None], scores]), 0)
            output = output * (normaliser - total).exp()[..., None]
            for score, other in zip(scores, values, strict=True):
                output = output + (score - total).exp()[..., None] * other
            output, normaliser = output.to(query.dtype), total
        else:
            scores = torch.empty(0)
        ctx.save_for_backward(query, key, value, output, normaliser, scores, *later)
        attended: torch.Tensor = output
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        """With the whole sum's output and normaliser, the causal part's own backward is exact."""
        query, key, value, output, normaliser, scores, *later = ctx.saved_tensors
        keys, values = later[: len(later) // 2], later[len(later) // 2 :]
        gradient = gradients[0].contiguous()
        d_query, d_key, d_value = _backward(gradient, query, key, value, output, normaliser, 0.0, True)
        scale = query.shape[-1] ** -0.5
        d_keys, d_values = [], []
        if keys:
            mean = (gradient * output).sum(-1, dtype=torch.float32)
            for score, other_key, other_value in zip(scores, keys, values, strict=True):
                share = (score - normaliser).exp()
                slope = share * ((gradient * other_value).sum(-1, dtype=torch.float32) - mean) * scale
                slope = slope[..., None].to(query.dtype)
                d_query = d_query + slope * other_key
                d_keys.append(slope * query)
                d_values.append(share[..., None].to(query.dtype) * gradient)
        return (d_query, d_key, d_value, *d_keys, *d_values)


def attend(
    query: torch.Tensor, first: tuple[torch.Tensor, torch.Tensor], later: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Returns the attention [batch, heads, length, head_dim] of queries over the first step's keys and values, and one
    key and value of each later step; see `UnrolledAttention`."""
    keys, values = [key for key, _ in later], [value for _, value in later]
    attended: torch.Tensor = UnrolledAttention.apply(query, *first, *keys, *values)  # type: ignore[no-untyped-call]
    return attended
