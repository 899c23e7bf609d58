"""An EAGLE head: one layer that joins token and feature, further ordinary layers, and a norm before the output rows.

Tensors are named as in the public EAGLE-3 layout. The further layers are named as in a Llama.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, silu

from scripts.drafter.head.unrolled import attend


@dataclass(frozen=True, slots=True)
class HeadShape:
    """The sizes of a head; those of its layers are its own, not the target's.

    Attributes:
        hidden, target_hidden: width of the head's residual stream and of the target's.
        features: the target's layers whose states are joined; 0 is the embeddings, -1 the state after the final norm.
    """

    hidden: int
    target_hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    features: tuple[int, ...]
    rope_theta: float
    eps: float


class Attention(nn.Module):
    """The projections of an attention."""

    def __init__(self, shape: HeadShape, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, shape.num_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(width, shape.num_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(width, shape.num_kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden, bias=False)


class Mlp(nn.Module):
    """The projections of a gated feed-forward block."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)


class Norm(nn.Module):
    """The weight of a root-mean-square norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Layer(nn.Module):
    """A pre-norm decoder layer; the first one of a head reads [token, feature] in its attention."""

    def __init__(self, shape: HeadShape, is_first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(shape, 2 * shape.hidden if is_first else shape.hidden)
        self.mlp = Mlp(shape)
        self.input_layernorm = Norm(shape.hidden)
        if is_first:
            self.hidden_norm = Norm(shape.hidden)
        self.post_attention_layernorm = Norm(shape.hidden)


class Head(nn.Module):
    """The trained part of a head."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(shape.target_hidden * len(shape.features), shape.hidden, bias=False)
        self.midlayer = Layer(shape, is_first=True)
        self.layers = nn.ModuleDict({str(index): Layer(shape, is_first=False) for index in range(1, shape.num_layers)})
        self.norm = Norm(shape.hidden)

    @property
    def all_layers(self) -> list[Layer]:
        """The layers in order, the first one included."""
        return [self.midlayer, *(layer for layer in self.layers.values() if isinstance(layer, Layer))]

    def unrolled(self, embeddings: torch.Tensor, features: torch.Tensor, num_steps: int) -> list[torch.Tensor]:
        """Runs every position as the first draft, the second one, and so on.

        Args:
            embeddings: [batch, length, hidden], of the token at i + 1 for position i, bfloat16.
            features: [batch, length, features of the target joined], bfloat16.

        Returns:
            For each step s the normed output [batch, length - s, hidden] of the positions s to the end, bfloat16.
        """
        run = Unrolled(self, embeddings.shape[1])
        state = linear(features, self.fc.weight.to(features.dtype)).float()
        outputs = []
        for step in range(num_steps):
            state = run.step(embeddings[:, step:], state if step == 0 else state[:, :-1])
            outputs.append(run.norm(state, self.norm))
        return outputs


class Unrolled:
    """One forward of a head over some sequences, step by step; keeps the keys and values of the steps before."""

    def __init__(self, head: Head, length: int) -> None:
        self.head, self.shape = head, head.shape
        self.layers = head.all_layers
        cast = torch.bfloat16
        self.weights = []
        for layer in self.layers:
            a, m = layer.self_attn, layer.mlp
            self.weights.append(
                (
                    torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]).to(cast),
                    a.o_proj.weight.to(cast),
                    torch.cat([m.gate_proj.weight, m.up_proj.weight]).to(cast),
                    m.down_proj.weight.to(cast),
                )
            )
        self.kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in self.layers]
        self.cos, self.sin = rope_tables(self.shape.rope_theta, self.shape.head_dim, length, cast)

    def step(self, embeddings: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Returns the residual stream after the last layer, float32 [batch, length, hidden]."""
        for index, layer in enumerate(self.layers):
            inputs = self.norm(state, layer.hidden_norm if index == 0 else layer.input_layernorm)
            if index == 0:
                inputs = torch.cat([self.norm(embeddings.float(), layer.input_layernorm), inputs], -1)
            state = state + self.attend(index, inputs)
            _, _, gate_up, down = self.weights[index]
            gate, up = linear(self.norm(state, layer.post_attention_layernorm), gate_up).chunk(2, -1)
            state = state + linear(silu(gate) * up, down)
        return state

    def attend(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        shape, (qkv_weight, out, _, _) = self.shape, self.weights[index]
        batch, length, _ = inputs.shape
        step = len(self.kept[index])
        qkv = linear(inputs, qkv_weight).view(batch, length, -1, shape.head_dim).transpose(1, 2)
        num_rotated = shape.num_heads + shape.num_kv_heads
        rotated = rotate(qkv[:, :num_rotated], self.cos[step : step + length], self.sin[step : step + length])
        query, (key, value) = rotated[:, : shape.num_heads], (rotated[:, shape.num_heads :], qkv[:, num_rotated:])
        group = shape.num_heads // shape.num_kv_heads
        if group > 1:
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        self.kept[index].append((key, value))
        # Position i of step s sees step 0 up to i - s, and step r at i - s + r.
        first, *later = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.kept[index]]
        attended = attend(query, first, later)
        return linear(attended.transpose(1, 2).flatten(2), out)

    def norm(self, state: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Normed in float32, for a product in bfloat16."""
        return rms_norm(state, (state.shape[-1],), norm.weight, self.shape.eps).to(torch.bfloat16)


def rope_tables(theta: float, head_dim: int, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position, each [length, head_dim]."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of the last dimension."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
