"""A decoder of the Llama kind run layer by layer on `kernels.LayerKernels`, nine calls a layer.

Built from a model of transformers whose layers have the parts that are fused here and no others: RMS norms
before attention and MLP, projections q, k, v, o, rotary embedding of whole heads, a gated MLP with SiLU.
Whether that gives the model's own numbers is decided by the self-check at load, never by the model's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import torch
from torch import nn
from transformers import PreTrainedModel

from minedraft_workers.execution.features import FeatureLayers, ForwardOutput
from minedraft_workers.execution.layers import LayerInputs, LayerStack, LayerWeights, RotaryAngles, See, pack_layer
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.base import LayerCacheT, LayerKernels, NotFused, PagedCache, PlanT, WeightT
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import BlockTables, QuerySpan

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # angles that depend on nothing but the position


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
class _Weights(Generic[WeightT]):
    """embedding: [ids, hidden size]; None where `output` is looked up, which it is tied to."""

    layers: list[LayerWeights[WeightT]]
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
        kernels: the kernels' name. device, dtype: where everything lies, and as what. cache: of the keys and values.

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
        self.device, self.dtype = model.device, model.dtype
        decoder: Any = model.get_decoder()
        first = check_structure(model).self_attn
        self._angles = RotaryAngles(decoder.rotary_emb, int(first.head_dim), model.dtype, model.device)
        self._weights = _pack(model, kernels)
        self.cache = make_cache()
        self._stack = LayerStack(
            kernels,
            self._weights.layers,
            self._weights.final_norm,
            self.cache,
            scale=float(first.scaling),
            eps=float(decoder.norm.variance_epsilon),
        )
        self._wanted = FeatureLayers()
        capacity = self.cache.pool.num_blocks * self.cache.pool.block_size
        self._angles.prepare(min(max_model_len or capacity, capacity))

    @property
    def tables(self) -> BlockTables:
        return self.cache

    @property
    def num_layers(self) -> int:
        return len(self._stack)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a forward reads, as stored."""
        return self._ops.read_bytes(self._weights.output) + self._stack.read_bytes

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
        normed = self._normed(inputs, see)
        if inputs.logit_rows is not None:
            normed = normed.index_select(0, inputs.logit_rows)
        return self.output(normed)

    def compute_with_features(self, inputs: ForwardInputs[PlanT]) -> ForwardOutput:
        """Return the logits asked for, and the features of all rows. As `compute`, nothing else is on the host."""
        features = self._empty_features(inputs, self._wanted)
        logits = self.compute(inputs, partial(self._wanted.put, features))
        return ForwardOutput(logits, features)

    def compute_hidden(self, inputs: ForwardInputs[PlanT], wanted: FeatureLayers) -> ForwardOutput:
        """Return what `output` makes logits of, [rows, hidden size], in their place, and these features of all rows.
        Nothing else is on the host."""
        features = self._empty_features(inputs, wanted)
        see = partial(wanted.put, features) if wanted.layers else None
        return ForwardOutput(self._normed(inputs, see), features)

    def _normed(self, inputs: ForwardInputs[PlanT], see: See | None) -> torch.Tensor:
        return self.run_layers(self.embed(inputs.ids), *self.angles(inputs.positions), inputs.plan, see)

    def _empty_features(self, inputs: ForwardInputs[PlanT], wanted: FeatureLayers) -> torch.Tensor:
        return torch.empty(len(inputs.ids), wanted.num_columns, dtype=self.dtype, device=self.device)

    def run_layers(
        self, residual: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: PlanT, see: See | None = None
    ) -> torch.Tensor:
        """Return the normed output of the last layer.

        Args:
            residual: the embedding, overwritten by the residual stream; it and the result are [rows, hidden size].
            cos, sin: [rows, head dim].
            see: as in `LayerStack.run`; called first with 0 and the embedding.
        """
        if see is not None:
            see(0, residual)
        return self._stack.run(self._stack.enter(0, residual), residual, LayerInputs(plan, cos, sin), see)

    def output(self, normed: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 [rows, columns], of the normed output of the last layer."""
        return self._ops.linear(normed, self._weights.output, as_float32=True)

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, [rows, head dim], of positions that are reserved."""
        return self._angles.at(positions)

    def put_angles(self, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Write what `angles` returns to `cos` and `sin`."""
        self._angles.put(positions, cos, sin)

    def reserve_positions(self, num_positions: int) -> None:
        """Compute the rotary angles of that many positions, unless they are known."""
        self._angles.reserve(num_positions)

    def run_layer(self, index: int, hidden: torch.Tensor, span: QuerySpan) -> torch.Tensor:
        """Return what a layer makes of the residual stream of one span, both [rows, hidden size]."""
        positions = torch.arange(span.start, span.start + span.num_tokens, device=self.device)
        inputs = LayerInputs(self._ops.plan(self.cache, [span]), *self.angles(positions))
        residual = hidden.clone()
        return residual.add_(self._stack.run_layer(index, self._stack.enter(index, residual), residual, inputs))

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32, of the last layer's output, [rows, hidden size]."""
        return self.output(self._stack.finish(hidden))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embedding, [rows, hidden size], of int64 ids [rows]."""
        if self._weights.embedding is None:
            return self._ops.rows(self._weights.output, ids).to(self.dtype)
        return self._weights.embedding.index_select(0, ids)

    def _make_inputs(self, rows: PackedRows) -> ForwardInputs[PlanT]:
        self.reserve_positions(rows.end)
        return ForwardInputs(
            rows.ids_on(self.device),
            to_device(rows.positions, self.device),
            self._ops.plan(self.cache, rows.spans),
            None if rows.wants_all else to_device(rows.logit_rows, self.device),
        )


def _pack(model: PreTrainedModel, kernels: LayerKernels[WeightT, Any, Any]) -> _Weights[WeightT]:
    decoder: Any = model.get_decoder()
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_tied = embedding is output.weight
    return _Weights(
        layers=[pack_layer(layer, kernels) for layer in decoder.layers],
        final_norm=decoder.norm.weight.detach(),
        output=kernels.pack(output.weight, output.bias, is_embedding=is_tied),
        embedding=None if is_tied else embedding.detach(),
    )


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
