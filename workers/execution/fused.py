"""A decoder of the Llama kind run layer by layer on the native kernels, nine calls a layer.

Built from a model of transformers whose layers have the parts that are fused here and no others: RMS norms
before attention and MLP, projections q, k, v, o, rotary embedding of whole heads, a gated MLP with SiLU.
Whether that gives the model's own numbers is decided by the self-check at load, never by the model's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from minedraft_workers.execution.attention import QuerySpan
from minedraft_workers.execution.tables import BlockTables, LayerShape
from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.tensors import LayerCache, PackedWeight, SpanPlan, huge_zeros, lossless_dtype

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # angles that depend on nothing but the position
_HEAD_STEP = 16  # head sizes that the kernels take are multiples of it


class NotFused(Exception):
    """The model has a part that is not fused here; the message names it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer's weights. qkv and gate_up are merged: their rows follow one another."""

    input_norm: torch.Tensor
    qkv: PackedWeight
    output: PackedWeight
    mlp_norm: torch.Tensor
    gate_up: PackedWeight
    down: PackedWeight
    cache: LayerCache


class NativeCache(BlockTables):
    """Keys and values in the kernels' layout. Free blocks need not be cleared: nothing unwritten is read."""

    def __init__(self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        super().__init__(layers, num_blocks, block_size)
        self.caches = [_make_layer_cache(shape, num_blocks, block_size, dtype) for shape in layers]


class FusedDecoder:
    """Runs a whole forward on the native kernels; a row's result depends on that row's request alone.

    Args:
        model: as transformers has loaded it, on the CPU; its weights are copied.
        cache: for its layers.
        max_model_len: positions that can occur.

    Attributes:
        kernels: "native" and the instruction set.

    Raises:
        NotFused: the model has a part that is not fused here.
    """

    is_batch_invariant = True

    def __init__(self, model: PreTrainedModel, cache: NativeCache, kernels: NativeKernels, max_model_len: int) -> None:
        self.kernels = f"native {kernels.isa}"
        self._native = kernels
        self._cache = cache
        self._dtype = model.dtype
        decoder: Any = model.get_decoder()
        first = check_structure(model).self_attn
        self._scale = float(first.scaling)
        self._head_dim = int(first.head_dim)
        self._eps = float(decoder.norm.variance_epsilon)
        self._layers = [
            self._pack_layer(layer, layer_cache)
            for layer, layer_cache in zip(decoder.layers, cache.caches, strict=True)
        ]
        self._final_norm = decoder.norm.weight.detach().clone()
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
        self._output = self._pack([output])
        # A tied embedding is looked up where the output layer has it.
        self._embedding = None if embedding is output.weight else embedding.detach()
        self._rotary = decoder.rotary_emb
        self._angles = self._make_angles(min(max_model_len, 2048))

    @property
    def tables(self) -> BlockTables:
        return self._cache

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a forward reads, as stored."""
        weights = [self._output]
        for layer in self._layers:
            weights += [layer.qkv, layer.output, layer.gate_up, layer.down]
        return sum(weight.data.numel() for weight in weights)

    def run(
        self, tokens: Sequence[np.ndarray], queries: Sequence[QuerySpan], num_logits: Sequence[int]
    ) -> torch.Tensor:
        """See `Runner.run`."""
        starts = [query.start for query in queries]
        lengths = [query.num_tokens for query in queries]
        pool = self._cache.pool
        tables = [query.blocks for query in queries]
        plan = SpanPlan.make(starts, lengths, tables, num_blocks=pool.num_blocks, block_size=pool.block_size)
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) + np.repeat(np.asarray(starts) - ends + lengths, lengths)
        rows = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, num_logits, strict=True)])
        cos, sin = self._angles_of(positions)
        hidden = self._embed(torch.from_numpy(np.concatenate(tokens)))
        normed = self._layers_forward(hidden, cos, sin, plan)
        if len(rows) < len(normed):
            normed = normed.index_select(0, torch.from_numpy(rows))
        return self._native.linear(normed, self._output, as_float32=True)

    def _layers_forward(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: SpanPlan
    ) -> torch.Tensor:
        """Return the normed output, [rows, hidden size]; `hidden`, the residual stream, is overwritten."""
        native, eps = self._native, self._eps
        normed = native.rms_norm(hidden, self._layers[0].input_norm, eps)
        for index, layer in enumerate(self._layers):
            cache = layer.cache
            qkv = native.linear(normed, layer.qkv)
            num_value_columns = cache.num_heads * cache.value_dim
            num_key_columns = cache.num_heads * cache.key_dim
            num_rotated = qkv.shape[1] - num_value_columns
            native.rope_(qkv[:, :num_rotated], cos, sin)
            native.store(cache, qkv[:, num_rotated - num_key_columns : num_rotated], qkv[:, num_rotated:], plan)
            mixed = native.attend(cache, qkv[:, : num_rotated - num_key_columns], plan, self._scale)
            normed = native.rms_norm(native.linear(mixed, layer.output), layer.mlp_norm, eps, residual=hidden)
            gated = native.silu_mul(native.linear(normed, layer.gate_up))
            is_last = index + 1 == len(self._layers)
            next_norm = self._final_norm if is_last else self._layers[index + 1].input_norm
            normed = native.rms_norm(native.linear(gated, layer.down), next_norm, eps, residual=hidden)
        return normed

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        if self._embedding is None:
            return self._native.rows(self._output, ids).to(self._dtype)
        embedded: torch.Tensor = self._embedding.index_select(0, ids)
        return embedded

    def _angles_of(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, [rows, head dim], of int64 positions [rows]."""
        last = int(positions.max())
        if last >= len(self._angles[0]):
            self._angles = self._make_angles(2 * (last + 1))
        ids = torch.from_numpy(positions)
        cos, sin = self._angles
        return cos.index_select(0, ids), sin.index_select(0, ids)

    def _make_angles(self, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        like = torch.empty(0, dtype=self._dtype)
        cos, sin = self._rotary(like, torch.arange(num_positions)[None])
        if cos.shape[-1] != self._head_dim:
            raise NotFused(f"a rotary embedding of {cos.shape[-1]} of a head's {self._head_dim} dimensions")
        return cos[0].contiguous(), sin[0].contiguous()

    def _pack_layer(self, layer: Any, cache: LayerCache) -> _Layer:  # noqa: ANN401 - a layer of transformers
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            input_norm=layer.input_layernorm.weight.detach().clone(),
            qkv=self._pack([attention.q_proj, attention.k_proj, attention.v_proj]),
            output=self._pack([attention.o_proj]),
            mlp_norm=layer.post_attention_layernorm.weight.detach().clone(),
            gate_up=self._pack([mlp.gate_proj, mlp.up_proj]),
            down=self._pack([mlp.down_proj]),
            cache=cache,
        )

    def _pack(self, linears: Sequence[nn.Linear]) -> PackedWeight:
        """Pack linear layers of the same input as one, in as few bits as lose nothing."""
        weight = torch.cat([linear.weight.detach() for linear in linears])
        biases = [linear.bias for linear in linears]
        bias = None
        if any(b is not None for b in biases):
            parts = [
                torch.zeros(linear.out_features) if b is None else b.detach().float()
                for linear, b in zip(linears, biases, strict=True)
            ]
            bias = torch.cat(parts)
        if self._dtype == torch.float32:
            weight = weight.to(lossless_dtype(weight))
        return self._native.pack(weight, bias)


def check_structure(model: PreTrainedModel) -> Any:  # noqa: ANN401 - a layer of transformers
    """Return the first layer.

    Raises:
        NotFused: the model has other parts than those that are fused here.
    """
    decoder: Any = model.get_decoder()
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise NotFused(f"weights of {model.dtype}")
    _check_parts(decoder, {"embed_tokens", "layers", "norm", "rotary_emb"}, "the decoder")
    kind = getattr(decoder.rotary_emb, "rope_type", "default")
    if not isinstance(kind, str) or kind not in _STATIC_ROPE:
        raise NotFused(f"a rotary embedding of type {kind}")
    if type(model.get_output_embeddings()) is not nn.Linear:
        raise NotFused("the output layer")
    norms = [decoder.norm]
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _check_parts(layer, _LAYER_PARTS, "a layer")
        _check_parts(attention, _ATTENTION_PARTS, "an attention")
        _check_parts(mlp, _MLP_PARTS, "an MLP")
        if attention.head_dim % _HEAD_STEP:
            raise NotFused(f"heads of {attention.head_dim}, no multiple of {_HEAD_STEP}")
        if any(type(part) is not nn.Linear for part in (*attention.children(), mlp.gate_proj, mlp.down_proj)):
            raise NotFused("a projection that is no plain linear layer")
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        if not _is_silu(mlp.act_fn):
            raise NotFused(f"the activation {type(mlp.act_fn).__name__}")
    if len({getattr(norm, "variance_epsilon", None) for norm in norms}) != 1 or not hasattr(decoder.norm, "weight"):
        raise NotFused("the norms")
    return decoder.layers[0]


def block_bytes(layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one block of a `NativeCache` takes over all layers."""
    return dtype.itemsize * sum(
        LayerCache.num_elements(1, block_size, shape.num_heads, dim)
        for shape in layers
        for dim in (shape.key_dim, shape.value_dim)
    )


def _check_parts(module: nn.Module, wanted: set[str], name: str) -> None:
    found = {child for child, _ in module.named_children()}
    if found != wanted:
        raise NotFused(f"{name} with {', '.join(sorted(found ^ wanted))}")


def _is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-8, 8, 65)
    return torch.allclose(activation(x), nn.functional.silu(x), rtol=1e-5, atol=1e-6)


def _make_layer_cache(shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype) -> LayerCache:
    def zeros(dim: int) -> torch.Tensor:
        count = LayerCache.num_elements(num_blocks, block_size, shape.num_heads, dim)
        return huge_zeros(count * dtype.itemsize).view(dtype)

    keys, values = zeros(shape.key_dim), zeros(shape.value_dim)
    return LayerCache(keys, values, num_blocks, block_size, shape.num_heads, shape.key_dim, shape.value_dim)
