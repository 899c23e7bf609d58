"""A fast fp32 forward pass of a Llama for making data on a CPU: fused, prepacked linears and folded attention.

transformers' own model is the reference (a test compares them). This one exists because 64 sequences that decode
together spend most of transformers' time outside the matrix products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.drafter.config import TargetConfig
from scripts.drafter.store import DrafterError, load_json, load_tensors

Linear = Callable[[torch.Tensor], torch.Tensor]


def load_target(folder: Path, expected: TargetConfig) -> LlamaForCausalLM:
    """Loads the target in fp32.

    Raises:
        DrafterError: the folder is missing, is another model, or its weights are truncated.
    """
    if not (folder / "config.json").is_file():
        raise DrafterError(
            f"{folder} is not a model folder (no config.json); --target must name that of {expected.name}"
        )
    config = LlamaConfig(**load_json(folder / "config.json", "target"))
    found = (config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size)
    wanted = ("llama", expected.hidden_size, expected.num_layers, expected.vocab_size)
    if found != wanted:
        raise DrafterError(
            f"{folder} is another model: {expected.name} has (type, hidden size, layers, vocabulary) {wanted}, "
            f"this one {found}"
        )
    load_tensors(folder / "model.safetensors")  # raises a clear error if the file is truncated
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if num_parameters != expected.num_parameters:
        raise DrafterError(
            f"{folder} is another model: {expected.name} has {expected.num_parameters:,} parameters, "
            f"this one {num_parameters:,}"
        )
    model.requires_grad_(False)  # from_pretrained leaves it in evaluation mode
    return model


@dataclass(slots=True)
class Block:
    """One decoder layer's weights."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    input_norm: torch.Tensor
    post_norm: torch.Tensor


class FastLlama:
    """Layers, norms and output rows of a Llama, with a static key-value cache of `num_slots` sequences."""

    def __init__(self, model: LlamaForCausalLM, num_slots: int, max_len: int) -> None:
        config = model.config
        self.num_heads, self.num_kv_heads, self.head_dim = head_sizes(config)
        self.group = self.num_heads // self.num_kv_heads
        self.eps = config.rms_norm_eps
        self.num_slots, self.max_len = num_slots, max_len
        self.embeddings = model.model.embed_tokens.weight
        self.norm = model.model.norm.weight
        self.head = pack_linear(model.lm_head.weight, num_slots)
        self.blocks = [
            Block(
                pack_linear(
                    torch.cat(
                        [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
                    ),
                    num_slots,
                ),
                pack_linear(layer.self_attn.o_proj.weight, num_slots),
                pack_linear(torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]), num_slots),
                pack_linear(layer.mlp.down_proj.weight, num_slots),
                layer.input_layernorm.weight,
                layer.post_attention_layernorm.weight,
            )
            for layer in model.model.layers
        ]
        self.cos, self.sin = rope_tables(rope_theta(config), self.head_dim, max_len)
        # [num_slots * num_kv_heads, max_len, head_dim] a layer: slot and head merge into the batch of a bmm
        shape = (len(self.blocks), num_slots * self.num_kv_heads, max_len, self.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    @torch.inference_mode()
    def prefill(self, slot: int, ids: torch.Tensor, start: int, recorded: list[int]) -> list[torch.Tensor]:
        """Runs one sequence's `ids` from position `start`; earlier positions are already cached.

        Returns:
            The hidden state after each of the `recorded` layers, then the last one after the final norm,
            each [len(ids), hidden].
        """
        num_new, end = len(ids), start + len(ids)
        rows = slice(slot * self.num_kv_heads, (slot + 1) * self.num_kv_heads)
        cos, sin = self.cos[start:end], self.sin[start:end]
        causal = torch.full((num_new, end), float("-inf")).triu_(start + 1)
        mask = causal.repeat(self.group, 1)  # query rows are [group, num_new], folded
        hidden = self.embeddings[ids]
        kept: list[torch.Tensor] = []
        for index, block in enumerate(self.blocks):
            query, key, value = self._project(block, hidden, cos, sin)
            self.keys[index, rows, start:end] = key.transpose(0, 1)
            self.values[index, rows, start:end] = value.transpose(0, 1)
            # [num_new, kv, group, d] -> [kv, group * num_new, d]
            query = query.permute(1, 2, 0, 3).reshape(self.num_kv_heads, self.group * num_new, self.head_dim)
            mixed = self._attend(query, self.keys[index, rows, :end], self.values[index, rows, :end], mask)
            mixed = mixed.view(self.num_kv_heads, self.group, num_new, self.head_dim).permute(2, 0, 1, 3)
            hidden = self._finish(block, hidden, mixed.reshape(num_new, -1))
            if index + 1 in recorded:
                kept.append(hidden)
        return [*kept, rms_norm(hidden, self.norm, self.eps)]

    @torch.inference_mode()
    def decode(self, ids: torch.Tensor, positions: torch.Tensor, recorded: list[int]) -> list[torch.Tensor]:
        """Runs one new token of every slot; returns what `prefill` returns, each [num_slots, hidden]."""
        num, end = self.num_slots, int(positions.max()) + 1
        slots = torch.arange(num)
        cos, sin = self.cos[positions], self.sin[positions]
        mask = torch.zeros(num, end).masked_fill_(torch.arange(end)[None] > positions[:, None], float("-inf"))
        mask = mask.repeat_interleave(self.num_kv_heads, 0)[:, None]
        hidden = self.embeddings[ids]
        kept: list[torch.Tensor] = []
        for index, block in enumerate(self.blocks):
            query, key, value = self._project(block, hidden, cos, sin)
            keys, values = self.keys[index], self.values[index]
            keys.view(num, self.num_kv_heads, self.max_len, -1)[slots, :, positions] = key
            values.view(num, self.num_kv_heads, self.max_len, -1)[slots, :, positions] = value
            query = query.reshape(num * self.num_kv_heads, self.group, self.head_dim)
            mixed = self._attend(query, keys[:, :end], values[:, :end], mask)
            hidden = self._finish(block, hidden, mixed.view(num, -1))
            if index + 1 in recorded:
                kept.append(hidden)
        return [*kept, rms_norm(hidden, self.norm, self.eps)]

    def _project(
        self, block: Block, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        qkv = block.qkv(rms_norm(hidden, block.input_norm, self.eps))
        num_rotated = self.num_heads + self.num_kv_heads
        qkv = qkv.view(-1, num_rotated + self.num_kv_heads, self.head_dim)
        rotated = rotate(qkv[:, :num_rotated], cos[:, None], sin[:, None])
        query = rotated[:, : self.num_heads].reshape(-1, self.num_kv_heads, self.group, self.head_dim)
        return query, rotated[:, self.num_heads :], qkv[:, num_rotated:]

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        scores = torch.bmm(query, keys.transpose(1, 2)).mul_(self.head_dim**-0.5).add_(mask)
        return torch.bmm(torch.softmax(scores, -1), values)

    def _finish(self, block: Block, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        hidden = hidden + block.out(mixed)
        gate, up = block.gate_up(rms_norm(hidden, block.post_norm, self.eps)).chunk(2, -1)
        return hidden + block.down(torch.nn.functional.silu(gate) * up)


def pack_linear(weight: torch.Tensor, num_rows: int) -> Linear:
    """A bias-free linear in a blocked layout; the operators are private, so plain `linear` is the fallback."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), num_rows)
        pointwise = torch.ops.mkldnn._linear_pointwise
        pointwise(torch.zeros(num_rows, weight.shape[1]), packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return lambda x: torch.nn.functional.linear(x, weight)

    def linear(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = pointwise(x, packed, None, "none", [], "")
        return result

    return linear


def head_sizes(config: LlamaConfig) -> tuple[int, int, int]:
    """Query heads, key-value heads and the size of one (a configuration may leave the last two to a rule)."""
    num_heads = config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // num_heads
    return num_heads, config.num_key_value_heads or num_heads, head_dim


def rope_theta(config: LlamaConfig) -> float:
    """The base of the rotary frequencies."""
    return float((config.rope_parameters or {})["rope_theta"] or 0.0)


def rope_tables(theta: float, head_dim: int, max_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position, each [max_len, head_dim]."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(max_len, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of the last dimension."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm, as Llama's."""
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)
