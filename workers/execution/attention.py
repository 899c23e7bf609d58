"""How transformers' models reach the paged cache: the attention function that they call in every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from minedraft_workers.kernels.paged_attention import attend_paged
from minedraft_workers.kernels.tables import LayerShape
from minedraft_workers.pulse import PULSE

# The name under which transformers' models find `attend`. No mask function is registered for it, so that
# the models build no mask: `attend` knows which tokens are visible.
ATTENTION_NAME = "minedraft_paged"
# The keyword under which the models' own forward passes the context to `attend`.
CONTEXT_KEYWORD = "minedraft_context"


class ShapeRecorder:
    """Replaces the context in a first forward: records what each layer would cache, and attends to nothing."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.specials: set[str] = set()  # what layers ask for beside plain causal attention
        self.num_attended = 0


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,  # noqa: ANN401 - other arguments of transformers
) -> tuple[torch.Tensor, None]:
    """Return the attention output of the packed new tokens; transformers calls it in every layer.

    It stores keys and values first, then attends each request's queries to its own cached tokens. query is
    [1, num_heads, T, dim], key and value are [1, num_kv_heads, T, dim], the result [1, T, num_heads, value_dim].
    """
    PULSE.beat()
    context = kwargs[CONTEXT_KEYWORD]
    layer_id: int = module.layer_idx  # type: ignore[assignment]
    if attention_mask is not None or s_aux is not None:
        raise NotImplementedError("attention masks and sinks")
    num_tokens, num_heads = query.shape[2], query.shape[1]
    num_kv_heads, value_dim = value.shape[1], value.shape[3]
    if isinstance(context, ShapeRecorder):
        context.num_attended += 1
        context.layers[layer_id] = LayerShape(num_kv_heads, key.shape[3], value_dim)
        if sliding_window:
            context.specials.add("a sliding window")
        if softcap is not None:
            context.specials.add("a soft cap")
        return query.new_zeros(1, num_tokens, num_heads, value_dim), None

    context.write(layer_id, key[0].transpose(0, 1), value[0].transpose(0, 1))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    queries = query[0].transpose(0, 1)  # [T, num_heads, dim]
    return attend_paged(context, layer_id, queries, scale, window=sliding_window or 0, softcap=softcap)[None], None
