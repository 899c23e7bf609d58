"""A drafting head's weights, read from its folder and its target's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from minedraft.models.heads.folder import HeadInfo, TokenRows
from minedraft.models.heads.layout import HeadLayout


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """The weights, all in one dtype on one device.

    layers: each with the names that transformers gives the parts of a Llama layer. hidden_norm, final_norm:
        [hidden size]; None in layout EAGLE, which has neither.
    embedding: [token ids, hidden size]. output: [columns, hidden size]; it may be the embedding itself.
    """

    layout: HeadLayout
    fc: nn.Linear
    layers: list[Any]
    hidden_norm: torch.Tensor | None
    final_norm: torch.Tensor | None
    embedding: torch.Tensor
    output: torch.Tensor
    draft_vocab_ids: torch.Tensor | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights; an embedding that is the output too counts once."""
        parts = [self.fc, *(part for layer in self.layers for part in _parts(layer))]
        tensors = [tensor for part in parts for tensor in (part.weight, getattr(part, "bias", None))]
        tensors += [self.hidden_norm, self.final_norm, self.embedding]
        if self.output is not self.embedding:
            tensors.append(self.output)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def read_head_weights(info: HeadInfo, dtype: torch.dtype, device: torch.device) -> HeadWeights:
    """Read the weights of a head that `check_head_folder` has checked.

    Raises:
        OSError, SafetensorError: a file has changed since.
    """
    own: dict[str, torch.Tensor] = {}
    for file in info.files:
        with safe_open(file, "pt") as tensors:
            own |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    weights = {name: tensor.to(device, dtype) for name, tensor in own.items() if tensor.is_floating_point()}
    ids = None if info.draft_ids is None else torch.tensor(info.draft_ids.tolist(), device=device)

    def read(rows: TokenRows) -> torch.Tensor:
        if rows.file in info.files:
            return weights[rows.tensor]
        with safe_open(rows.file, "pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(rows.tensor)
        return tensor.to(device, dtype)

    embedding = read(info.embedding)
    output = embedding if info.output == info.embedding else read(info.output)
    if ids is not None and not info.has_own_output:
        output = output.index_select(0, ids)
    first = info.layout.first_layer
    names = [first, *(f"layers.{index}" for index in range(1, info.config.num_layers))]
    return HeadWeights(
        info.layout,
        _linear(weights, "fc"),
        [_layer(weights, name) for name in names],
        weights.get(f"{first}.hidden_norm.weight"),
        weights.get("norm.weight"),
        embedding,
        output,
        ids,
    )


def make_rotary(info: HeadInfo, device: torch.device) -> nn.Module:
    """Return transformers' rotary embedding of the head's configuration."""
    config = info.config
    llama = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_context or info.max_context,
        **config.rope,
    )
    rotary: nn.Module = LlamaRotaryEmbedding(llama).to(device)
    return rotary


def _layer(weights: Mapping[str, torch.Tensor], name: str) -> SimpleNamespace:
    attention = {f"{part}_proj": _linear(weights, f"{name}.self_attn.{part}_proj") for part in "qkvo"}
    mlp = {f"{part}_proj": _linear(weights, f"{name}.mlp.{part}_proj") for part in ("gate", "up", "down")}
    norms = {
        norm: SimpleNamespace(weight=weights.get(f"{name}.{norm}.weight"))
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    return SimpleNamespace(self_attn=SimpleNamespace(**attention), mlp=SimpleNamespace(**mlp), **norms)


def _linear(weights: Mapping[str, torch.Tensor], name: str) -> nn.Linear:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _parts(layer: Any) -> list[Any]:  # noqa: ANN401 - a layer of `HeadWeights`
    attention, mlp = vars(layer.self_attn).values(), vars(layer.mlp).values()
    return [*attention, *mlp, layer.input_layernorm, layer.post_attention_layernorm]
