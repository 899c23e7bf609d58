"""A decoder of the Llama kind run layer by layer on `kernels.LayerKernels`, nine calls a layer.

Built from a model of transformers whose layers have the parts that are fused here and no others: RMS norms
before attention and MLP, projections q, k, v, o, rotary embedding of whole heads, a gated MLP with SiLU.
Whether that gives the model's own numbers is decided by the self-check at load, never by the model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from minedraft_workers.execution.features import AFTER_FINAL_NORM, FeatureLayers, ForwardOutput
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.base import LayerCacheT, LayerKernels, NotFused, PagedCache, PlanT, WeightT
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import BlockTables, QuerySpan

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # angles that depend on nothing but the position
_MAX_FIRST_ANGLES = 2048  # positions whose angles are computed at load; more when a request reaches them

See = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Layer(Generic[WeightT]):
    """One layer's weights. qkv and gate_up are merged: their rows follow one another."""

    input_norm: torch.Tensor
    qkv: WeightT
    output: WeightT
    mlp_norm: torch.Tensor
    gate_up: WeightT
    down: WeightT
    num_key_columns: int
    num_value_columns: int


@dataclass(frozen=True, slots=True, eq=False)
class ForwardInputs(Generic[PlanT]):
    """A forward's input, all of it on the device.

    ids, positions: int64 [rows]. logit_rows: int64 [n], the rows whose logits are wanted; None for all.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    plan: PlanT
    logit_rows: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Forward(Generic[PlanT]):
    """What all layers share. cos, sin: [rows, head dim]."""

    plan: PlanT
    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Weights(Generic[WeightT]):
    """embedding: [ids, hidden size]; None where `output` is looked up, which it is tied to."""

    layers: list[_Layer[WeightT]]
    final_norm: torch.Tensor
    output: WeightT
    embedding: torch.Tensor | None


class FusedDecoder(Generic[WeightT, LayerCacheT, PlanT]):
    """Runs a whole forward on the layers' kernels.

    Args:
        model: as transformers has loaded it. Its weights are packed; it still runs by itself, and where packing
            needs no other layout it shares memory with them.
        make_cache: makes the cache of these kernels, once the weights are packed: only then is it known what
            memory is free.
        max_model_len: positions that can occur.

    Attributes:
        kernels: the kernels' name. device: where everything lies. cache: of the keys and values.

    Raises:
        NotFused: the model has a part that is not fused here.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kernels: LayerKernels[WeightT, LayerCacheT, PlanT],
        make_cache: Callable[[], PagedCache[LayerCacheT]],
        max_model_len: int | None = None,
    ) -> None:
        self.kernels = kernels.name
        self.is_batch_invariant = kernels.is_batch_invariant
        self._ops = kernels
        self.device, self._dtype = model.device, model.dtype
        decoder: Any = model.get_decoder()
        first = check_structure(model).self_attn
        self._scale = float(first.scaling)
        self._head_dim = int(first.head_dim)
        self._eps = float(decoder.norm.variance_epsilon)
        self._rotary = decoder.rotary_emb
        self._angles = self._make_angles(16)
        self._weights = _pack(model, kernels)
        self.cache = make_cache()
        self._wanted = FeatureLayers()
        capacity = self.cache.pool.num_blocks * self.cache.pool.block_size
        self._angles = self._make_angles(min(max_model_len or capacity, capacity, _MAX_FIRST_ANGLES))

    @property
    def tables(self) -> BlockTables:
        return self.cache

    @property
    def num_layers(self) -> int:
        return len(self._weights.layers)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a forward reads, as stored."""
        weights = [self._weights.output]
        for layer in self._weights.layers:
            weights += [layer.qkv, layer.output, layer.gate_up, layer.down]
        return sum(map(self._ops.read_bytes, weights))

    def want_features(self, wanted: FeatureLayers) -> None:
        """Implements `Runner`."""
        self._wanted = wanted

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Implements `Runner`."""
        return self.compute(self._make_inputs(rows))

    def run_with_features(self, rows: PackedRows) -> ForwardOutput:
        """Implements `Runner`."""
        return self.compute_with_features(self._make_inputs(rows))

    def compute(self, inputs: ForwardInputs[PlanT], see: See | None = None) -> torch.Tensor:
        """Return the logits asked for, float32 [n, columns]. Nothing of it happens on the host but the launches.

        see: as in `run_layers`.
        """
        normed = self.run_layers(self.embed(inputs.ids), *self.angles(inputs.positions), inputs.plan, see)
        if inputs.logit_rows is not None:
            normed = normed.index_select(0, inputs.logit_rows)
        return self.output(normed)

    def compute_with_features(self, inputs: ForwardInputs[PlanT]) -> ForwardOutput:
        """Return the logits asked for, and the features of all rows. As `compute`, nothing else is on the host."""
        features = torch.empty(len(inputs.ids), self._wanted.num_columns, dtype=self._dtype, device=self.device)
        logits = self.compute(inputs, partial(self._wanted.put, features))
        return ForwardOutput(logits, features)

    def run_layers(
        self, residual: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: PlanT, see: See | None = None
    ) -> torch.Tensor:
        """Return the normed output of the last layer.

        Args:
            residual: the embedding, overwritten by the residual stream; it and the result are [rows, hidden size].
            cos, sin: [rows, head dim].
            see: called with 0 and the embedding, with each layer's number, from 1, and the stream after it, and with
                `AFTER_FINAL_NORM` and the result, each before it is overwritten.
        """
        forward = _Forward(plan, cos, sin)
        if see is not None:
            see(0, residual)
        normed = self._ops.rms_norm(residual, self._weights.layers[0].input_norm, self._eps)
        for index in range(len(self._weights.layers)):
            mixed = self._layer(index, normed, residual, forward)
            is_last = index + 1 == len(self._weights.layers)
            norm = self._weights.final_norm if is_last else self._weights.layers[index + 1].input_norm
            normed = self._ops.rms_norm(mixed, norm, self._eps, residual=residual)
            if see is not None:
                see(index + 1, residual)
        if see is not None:
            see(AFTER_FINAL_NORM, normed)
        return normed

    def output(self, normed: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 [rows, columns], of the normed output of the last layer."""
        return self._ops.linear(normed, self._weights.output, as_float32=True)

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, [rows, head dim], of positions that are reserved."""
        cos, sin = self._angles
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def reserve_positions(self, num_positions: int) -> None:
        """Compute the rotary angles of that many positions, unless they are known."""
        if num_positions > len(self._angles[0]):
            self._angles = self._make_angles(2 * num_positions)

    def run_layer(self, index: int, hidden: torch.Tensor, span: QuerySpan) -> torch.Tensor:
        """Return what a layer makes of the residual stream of one span, both [rows, hidden size]."""
        positions = torch.arange(span.start, span.start + span.num_tokens, device=self.device)
        forward = _Forward(self._ops.plan(self.cache, [span]), *self.angles(positions))
        residual = hidden.clone()
        normed = self._ops.rms_norm(residual, self._weights.layers[index].input_norm, self._eps)
        return residual.add_(self._layer(index, normed, residual, forward))

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32, of the last layer's output, [rows, hidden size]."""
        return self.output(self._ops.rms_norm(hidden, self._weights.final_norm, self._eps))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embedding, [rows, hidden size], of int64 ids [rows]."""
        if self._weights.embedding is None:
            return self._ops.rows(self._weights.output, ids).to(self._dtype)
        return self._weights.embedding.index_select(0, ids)

    def _make_inputs(self, rows: PackedRows) -> ForwardInputs[PlanT]:
        self.reserve_positions(int(rows.positions.max()) + 1)
        has_all = len(rows.logit_rows) == len(rows.ids) and _ascends(rows.logit_rows)
        return ForwardInputs(
            to_device(rows.ids, self.device),
            to_device(rows.positions, self.device),
            self._ops.plan(self.cache, rows.spans),
            None if has_all else to_device(rows.logit_rows, self.device),
        )

    def _layer(
        self, index: int, normed: torch.Tensor, residual: torch.Tensor, forward: _Forward[PlanT]
    ) -> torch.Tensor:
        """Add the attention's output to `residual` and return the MLP's output; all are [rows, hidden size]."""
        ops, layer, cache, plan = self._ops, self._weights.layers[index], self.cache.layer_caches[index], forward.plan
        qkv = ops.linear(normed, layer.qkv)
        num_rotated = qkv.shape[1] - layer.num_value_columns
        first_key = num_rotated - layer.num_key_columns
        ops.rope_(qkv[:, :num_rotated], forward.cos, forward.sin)
        ops.store(cache, qkv[:, first_key:num_rotated], qkv[:, num_rotated:], plan)
        attended = ops.linear(ops.attend(cache, qkv[:, :first_key], plan, self._scale), layer.output)
        normed = ops.rms_norm(attended, layer.mlp_norm, self._eps, residual=residual)
        return ops.linear(ops.silu_mul(ops.linear(normed, layer.gate_up)), layer.down)

    def _make_angles(self, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        like = torch.empty(0, dtype=self._dtype, device=self.device)
        cos, sin = self._rotary(like, torch.arange(num_positions, device=self.device)[None])
        if cos.shape[-1] != self._head_dim:
            raise NotFused(f"a rotary embedding of {cos.shape[-1]} of a head's {self._head_dim} dimensions")
        return cos[0].contiguous(), sin[0].contiguous()


def _pack(model: PreTrainedModel, kernels: LayerKernels[WeightT, Any, Any]) -> _Weights[WeightT]:
    decoder: Any = model.get_decoder()
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_tied = embedding is output.weight
    return _Weights(
        layers=[_pack_layer(layer, kernels) for layer in decoder.layers],
        final_norm=decoder.norm.weight.detach(),
        output=kernels.pack(output.weight, output.bias, is_embedding=is_tied),
        embedding=None if is_tied else embedding.detach(),
    )


def _pack_layer(layer: Any, kernels: LayerKernels[WeightT, Any, Any]) -> _Layer[WeightT]:  # noqa: ANN401 - transformers'
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_merge([attention.q_proj, attention.k_proj, attention.v_proj], kernels),
        output=kernels.pack(attention.o_proj.weight, attention.o_proj.bias),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_merge([mlp.gate_proj, mlp.up_proj], kernels),
        down=kernels.pack(mlp.down_proj.weight, mlp.down_proj.bias),
        num_key_columns=attention.k_proj.out_features,
        num_value_columns=attention.v_proj.out_features,
    )


def _merge(linears: Sequence[nn.Linear], kernels: LayerKernels[WeightT, Any, Any]) -> WeightT:
    """Pack linear layers of the same input as one."""
    sizes = [linear.out_features for linear in linears]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, torch.split(weight, sizes), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)  # a view: there are never two copies of a model
    bias = None
    if any(linear.bias is not None for linear in linears):
        zeros = (weight.new_zeros(size) for size in sizes)
        bias = torch.cat([z if linear.bias is None else linear.bias for linear, z in zip(linears, zeros, strict=True)])
    return kernels.pack(weight, bias)


def _ascends(rows: np.ndarray) -> bool:
    return bool((rows[1:] > rows[:-1]).all())


def check_structure(model: PreTrainedModel) -> Any:  # noqa: ANN401 - a layer of transformers
    """Return the first layer.

    Raises:
        NotFused: the model has other parts than those that are fused here.
    """
    decoder: Any = model.get_decoder()
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
        if any(type(part) is not nn.Linear for part in (*attention.children(), mlp.gate_proj, mlp.down_proj)):
            raise NotFused("a projection that is no plain linear layer")
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        if not _is_silu(mlp.act_fn):
            raise NotFused(f"the activation {type(mlp.act_fn).__name__}")
    if len({getattr(norm, "variance_epsilon", None) for norm in norms}) != 1 or not hasattr(decoder.norm, "weight"):
        raise NotFused("the norms")
    return decoder.layers[0]


def _check_parts(module: nn.Module, wanted: set[str], name: str) -> None:
    found = {child for child, _ in module.named_children()}
    if found != wanted:
        raise NotFused(f"{name} with {', '.join(sorted(found ^ wanted))}")


def _is_silu(activation: nn.Module) -> bool:
    x = torch.linspace(-8, 8, 65)
    return torch.allclose(activation(x), nn.functional.silu(x), rtol=1e-5, atol=1e-6)
