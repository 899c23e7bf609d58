"""Stage `student`: the draft vocabulary, and a pruned copy of the target with a closed-form start.

The student is `prefix` unchanged layers of the target, then the `trained` layers. The prefix is never trained, so
its output is recorded once, while the answers are made, and training reads it from there.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from transformers import LlamaForCausalLM

from scripts.drafter.answers import shard_paths
from scripts.drafter.llama import head_sizes, rms_norm, rope_tables, rope_theta, rotate
from scripts.drafter.store import DrafterError, load_tensors

LAYER_KEYS = ("qkv", "out", "gate_up", "down", "input_norm", "post_norm")


@dataclass(slots=True)
class Batch:
    """Sequences packed end to end after one copy of the header; attention sees them padded on the right."""

    hidden: torch.Tensor  # [num_rows, hidden], the states that enter the trained layers
    positions: torch.Tensor  # [num_rows]
    padded: torch.Tensor  # [num_sequences, longest], row of each position (row 0 where there is none)
    packed: torch.Tensor  # [num_rows], where each row is in the flattened padded layout


class Student(torch.nn.Module):
    """The trained layers and the final norm; weights are fused as in `FastLlama`, split again when exported."""

    def __init__(self, model: LlamaForCausalLM, layers: list[int], max_len: int = 1024) -> None:
        super().__init__()
        config = model.config
        self.num_heads, self.num_kv_heads, self.head_dim = head_sizes(config)
        self.eps = config.rms_norm_eps
        self.layers = torch.nn.ModuleList()
        for index in layers:
            source = model.model.layers[index]
            attention, mlp = source.self_attn, source.mlp
            tensors = (
                torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
                attention.o_proj.weight,
                torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                mlp.down_proj.weight,
                source.input_layernorm.weight,
                source.post_attention_layernorm.weight,
            )
            self.layers.append(
                torch.nn.ParameterDict(
                    {
                        key: torch.nn.Parameter(tensor.detach().clone())
                        for key, tensor in zip(LAYER_KEYS, tensors, strict=True)
                    }
                )
            )
        self.norm = torch.nn.Parameter(model.model.norm.weight.detach().clone())
        self.cos, self.sin = rope_tables(rope_theta(config), self.head_dim, max_len)

    @property
    def blocks(self) -> list[torch.nn.ParameterDict]:
        """The weights of each trained layer."""
        return [layer for layer in self.layers if isinstance(layer, torch.nn.ParameterDict)]

    def forward(self, batch: Batch) -> torch.Tensor:
        """The last hidden state of every row after the final norm."""
        *_, hidden = self.stream(batch)
        return rms_norm(hidden, self.norm, self.eps)

    def trajectory(self, batch: Batch) -> list[torch.Tensor]:
        """The residual stream after each layer."""
        with torch.no_grad():
            return list(self.stream(batch))

    def stream(self, batch: Batch) -> Iterator[torch.Tensor]:
        """Yields the residual stream after each layer, first to last."""
        hidden = batch.hidden
        cos, sin = self.cos[batch.positions][:, None], self.sin[batch.positions][:, None]
        for layer in self.blocks:
            hidden = self.mixed(layer, hidden, batch, cos, sin)
            hidden = hidden + linear(self.activation(layer, hidden), layer["down"])
            yield hidden

    def mixed(
        self, layer: torch.nn.ParameterDict, hidden: torch.Tensor, batch: Batch, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """The residual stream after a layer's attention."""
        qkv = linear(rms_norm(hidden, layer["input_norm"], self.eps), layer["qkv"])
        num_rotated = self.num_heads + self.num_kv_heads
        qkv = qkv.view(-1, num_rotated + self.num_kv_heads, self.head_dim)
        rotated = rotate(qkv[:, :num_rotated], cos, sin)
        # [num_sequences, longest, heads, d]; rows are right-padded, so causal attention needs no mask
        query = rotated[:, : self.num_heads][batch.padded].transpose(1, 2)
        group = self.num_heads // self.num_kv_heads
        key = rotated[:, self.num_heads :][batch.padded].transpose(1, 2).repeat_interleave(group, 1)
        value = qkv[:, num_rotated:][batch.padded].transpose(1, 2).repeat_interleave(group, 1)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
        return hidden + linear(attended.flatten(0, 1).flatten(1)[batch.packed], layer["out"])

    def activation(self, layer: torch.nn.ParameterDict, hidden: torch.Tensor) -> torch.Tensor:
        """The input of a layer's down projection."""
        gate, up = linear(rms_norm(hidden, layer["post_norm"], self.eps), layer["gate_up"]).chunk(2, -1)
        return silu(gate) * up


def make_batch(header: torch.Tensor, sequences: Iterable[torch.Tensor]) -> Batch:
    """Packs the states of the shared header and of some sequences."""
    rows, positions, lengths = [header], [torch.arange(len(header))], []
    for states in sequences:
        rows.append(states)
        positions.append(torch.arange(len(header), len(header) + len(states)))
        lengths.append(len(states))
    longest, num_header = max(lengths), len(header)
    padded = torch.zeros(len(lengths), num_header + longest, dtype=torch.long)
    padded[:, :num_header] = torch.arange(num_header)
    packed, start = [torch.arange(num_header)], num_header
    for index, length in enumerate(lengths):
        padded[index, num_header : num_header + length] = torch.arange(start, start + length)
        first = index * (num_header + longest) + num_header
        packed.append(torch.arange(first, first + length))
        start += length
    return Batch(torch.cat(rows).float(), torch.cat(positions), padded, torch.cat(packed))


def draft_vocabulary(answers: Path, size: int, vocab_size: int, special: Iterable[int]) -> torch.Tensor:
    """The most frequent ids of the target's own tokens, sorted; `special` ids are always in it."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for path in shard_paths(answers):
        tensors = load_tensors(path)
        # Tokens of given prompts count a little, to rank ids that no answer has.
        weights = torch.where(tensors["owned"].bool(), 1000, 1)
        counts.index_add_(0, tensors["tokens"].long(), weights)
    if not counts.any():
        raise DrafterError(f"{answers} holds no answers: run the stage `answers` first")
    for token in special:
        counts[token] = torch.iinfo(torch.long).max
    # Ties (ids never seen) go to the smaller id, which byte-pair merging made the more frequent one.
    order = torch.argsort(counts, descending=True, stable=True)[: min(size, vocab_size)]
    return order.sort().values.to(torch.int32)


def fit_blocks(student: Student, batches: list[tuple[Batch, list[torch.Tensor]]], strength: float) -> None:
    """Refits each trained layer's down projection in closed form, first to last.

    A cut leaves each layer with an input for the next one that no layer ever made. The best correction of a down
    projection (its input is given, its output is the residual stream) is a least-squares problem: bring the stream to
    what the target has where the next kept layer starts.

    Args:
        student: changed in place.
        batches: inputs, and for each trained layer the target's states [num_rows, hidden] that it should end at.
        strength: of the ridge, relative to the mean energy of the activations.
    """
    inputs = [batch.hidden for batch, _ in batches]
    with torch.no_grad():
        for index, layer in enumerate(student.blocks):
            size = layer["down"].shape[1]
            gram, cross = torch.zeros(size, size), torch.zeros(size, len(layer["down"]))
            middles = []
            for number, (batch, goals) in enumerate(batches):
                cos, sin = student.cos[batch.positions][:, None], student.sin[batch.positions][:, None]
                middle = student.mixed(layer, inputs[number], batch, cos, sin)
                activation = student.activation(layer, middle)
                middles.append((middle, activation))
                rest = goals[index] - middle - linear(activation, layer["down"])
                # Relative errors: a few positions have states a hundred times larger than all others.
                scale = goals[index].pow(2).mean(-1, keepdim=True).rsqrt()
                weighted = activation * scale
                gram += weighted.T @ weighted
                cross += weighted.T @ (rest * scale)
            ridge = strength * gram.diagonal().mean()
            factor = torch.linalg.cholesky(gram + ridge * torch.eye(size))
            layer["down"] += torch.cholesky_solve(cross, factor).T
            inputs = [middle + linear(activation, layer["down"]) for middle, activation in middles]


def num_trained_parameters(student: Student) -> int:
    """Parameters of the trained layers and the final norm."""
    return sum(math.prod(parameter.shape) for parameter in student.parameters())
