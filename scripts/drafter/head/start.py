"""The start of a head: the target's last layers, and a first layer that is fitted in closed form.

A head's residual stream begins with the joined features, so least squares say which mixture of features and of the
token's embedding is nearest to the state that the target has, one token later, in front of the layer that the head's
first layer starts from. The features' part goes into `fc`. The embedding's part goes through the attention: some heads
look at their own position only, which random projections of the embedding make them do, and carry its largest
singular directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import rms_norm

from scripts.drafter.config import HeadConfig
from scripts.drafter.data.corpus import Batch
from scripts.drafter.head.network import Head, Layer


@torch.no_grad()
def copy_layers(head: Head, target: Mapping[str, torch.Tensor], layers: list[int], final_norm: torch.Tensor) -> None:
    """Starts the head's layers from those of the target, where the shapes fit; others keep their random start.

    Args:
        target: the target's tensors by name.
        layers: as many as the head has.
    """
    for layer, index in zip(head.all_layers, layers, strict=True):
        source = {
            name.split(f"layers.{index}.", 1)[1]: tensor
            for name, tensor in target.items()
            if f"layers.{index}." in name
        }
        for name, parameter in layer.named_parameters():
            origin = "input_layernorm.weight" if name == "hidden_norm.weight" else name
            if origin in source:
                _copy(parameter, source[origin].float(), head.shape.head_dim, is_first=layer is head.midlayer)
    if final_norm.shape == head.norm.weight.shape:
        head.norm.weight.copy_(final_norm.float())


def _copy(parameter: torch.nn.Parameter, value: torch.Tensor, head_dim: int, *, is_first: bool) -> None:
    if value.dim() == 2 and len(value) < len(parameter) and len(parameter) % len(value) == 0:
        # The target shares a key-value head among several query heads; the head has one for each.
        repeats = len(parameter) // len(value)
        value = value.view(-1, head_dim, value.shape[1]).repeat_interleave(repeats, 0).flatten(0, 1)
    if is_first and value.dim() == 2 and parameter.shape[1] == 2 * value.shape[1]:
        value = torch.cat([value, value], 1)
    if value.shape == parameter.shape:
        parameter.copy_(value)


@torch.no_grad()
def fit_first_layer(
    head: Head,
    batches: list[Batch],
    goal_layer: int,
    config: HeadConfig,
    embed: Callable[[torch.Tensor], torch.Tensor],
    join: Callable[[Batch], torch.Tensor],
) -> None:
    """Fits `fc` and the token's path through the first layer's attention; changes the head in place.

    Args:
        batches: with the goal layer's states.
        goal_layer: whose states, one token later, the residual stream is brought near to.
        embed: the embeddings of token ids.
        join: a batch's features joined, [batch, length, width].
    """
    shape = head.shape
    width = shape.target_hidden * len(shape.features)
    gram = torch.zeros(width + shape.hidden, width + shape.hidden)
    cross = torch.zeros(width + shape.hidden, shape.hidden)
    for batch in batches:
        chosen = batch.weights[:, 1:] > 0
        goal = batch.layers[goal_layer][:, 1:][chosen].float()
        token = rms_norm(embed(batch.tokens[:, 1:][chosen]).float(), (shape.hidden,), None, shape.eps)
        inputs = torch.cat([join(batch)[:, :-1][chosen].float(), token], -1)
        # Relative errors: a few positions have states a hundred times larger than all others.
        scale = goal.pow(2).mean(-1, keepdim=True).rsqrt()
        gram += (inputs * scale).T @ (inputs * scale)
        cross += (inputs * scale).T @ (goal * scale)
    blocks = torch.split(gram.diagonal(), [shape.target_hidden] * len(shape.features) + [shape.hidden])
    ridge = torch.cat([block.mean().expand(len(block)) for block in blocks]) * config.fit_ridge + 1e-6
    solution = torch.cholesky_solve(cross, torch.linalg.cholesky(gram + ridge.diag()))
    head.fc.weight.copy_(solution[:width].T)
    _carry_token(head.midlayer, solution[width:].T, shape.num_heads, config)


def _carry_token(layer: Layer, matrix: torch.Tensor, num_heads: int, config: HeadConfig) -> None:
    """Lets some heads add `matrix` times the token's normed embedding; needs one key-value head for each."""
    hidden = len(matrix)
    attention, head_dim = layer.self_attn, len(layer.self_attn.q_proj.weight) // num_heads
    layer.input_layernorm.weight.fill_(1.0)
    left, sizes, right = torch.linalg.svd(matrix)
    directions = torch.linalg.qr(torch.randn(hidden, hidden))[0]
    for number in range(round(config.token_heads * num_heads)):
        rows = slice(number * head_dim, (number + 1) * head_dim)
        first = number * head_dim % max(1, hidden - head_dim + 1)
        for projection in (attention.q_proj.weight, attention.k_proj.weight):
            projection[rows] = 0
            projection[rows, :hidden] = directions[:, first : first + head_dim].T * config.sharpness
        attention.v_proj.weight[rows] = 0
        attention.o_proj.weight[:, rows] = 0
        part = slice(rows.start, min(rows.stop, hidden))
        count = part.stop - part.start
        if count > 0:
            root = sizes[part].sqrt()
            attention.v_proj.weight[rows.start : rows.start + count, :hidden] = root[:, None] * right[part]
            attention.o_proj.weight[:, rows.start : rows.start + count] = left[:, part] * root
