"""What decoders of the Llama kind are made of: layers over a paged cache, and the rotary angles of positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import nn

from minedraft_workers.execution.features import AFTER_FINAL_NORM
from minedraft_workers.kernels.base import LayerCacheT, LayerKernels, NotFused, PagedCache, PlanT, WeightT
from minedraft_workers.pulse import PULSE

_MAX_FIRST_ANGLES = 2048  # positions whose angles are computed at load; more when a request reaches them

See = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights(Generic[WeightT]):
    """One layer's weights. qkv and gate_up are merged: their rows follow one another.

    input_norm: [hidden size]; None for a first layer that is given its input ready.
    """

    input_norm: torch.Tensor | None
    qkv: WeightT
    output: WeightT
    mlp_norm: torch.Tensor
    gate_up: WeightT
    down: WeightT
    num_key_columns: int
    num_value_columns: int


@dataclass(frozen=True, slots=True, eq=False)
class LayerInputs(Generic[PlanT]):
    """What all layers of a forward share. cos, sin: [rows, head dim]."""

    plan: PlanT
    cos: torch.Tensor
    sin: torch.Tensor


class LayerStack(Generic[WeightT, LayerCacheT, PlanT]):
    """Layers, nine kernel calls each, and the norm after the last of them.

    Args:
        scale: that attention multiplies scores with. eps: of every norm.
    """

    def __init__(
        self,
        kernels: LayerKernels[WeightT, LayerCacheT, PlanT],
        layers: Sequence[LayerWeights[WeightT]],
        final_norm: torch.Tensor,
        cache: PagedCache[LayerCacheT],
        *,
        scale: float,
        eps: float,
    ) -> None:
        self._ops = kernels
        self._layers = layers
        self._final_norm = final_norm
        self._cache = cache
        self._scale = scale
        self._eps = eps

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a forward reads, as stored."""
        matrices = (weight for layer in self._layers for weight in (layer.qkv, layer.output, layer.gate_up, layer.down))
        return sum(map(self._ops.read_bytes, matrices))

    def enter(self, index: int, residual: torch.Tensor) -> torch.Tensor:
        """Return what layer `index` makes of the residual stream first, [rows, hidden size]: its norm."""
        norm = self._layers[index].input_norm
        assert norm is not None, f"layer {index} is given its input"
        return self._ops.rms_norm(residual, norm, self._eps)

    def run(
        self, normed: torch.Tensor, residual: torch.Tensor, inputs: LayerInputs[PlanT], see: See | None = None
    ) -> torch.Tensor:
        """Return the normed output of the last layer, [rows, hidden size].

        Args:
            normed: what the first layer's projections read, [rows, its width].
            residual: the residual stream before the first layer, overwritten by that after the last,
                [rows, hidden size].
            see: called with each layer's number, from 1, and the stream after it, and with `AFTER_FINAL_NORM` and the
                result, each before it is overwritten.
        """
        for index in range(len(self._layers)):
            mixed = self.run_layer(index, normed, residual, inputs)
            is_last = index + 1 == len(self._layers)
            norm = self._final_norm if is_last else self._layers[index + 1].input_norm
            assert norm is not None, "only the first layer is given its input"
            normed = self._ops.rms_norm(mixed, norm, self._eps, residual=residual)
            if see is not None:
                see(index + 1, residual)
        if see is not None:
            see(AFTER_FINAL_NORM, normed)
        return normed

    def run_layer(
        self, index: int, normed: torch.Tensor, residual: torch.Tensor, inputs: LayerInputs[PlanT]
    ) -> torch.Tensor:
        """Add the attention's output to `residual` and return the MLP's output; all are [rows, hidden size]."""
        PULSE.beat()
        ops, layer, cache, plan = self._ops, self._layers[index], self._cache.layer_caches[index], inputs.plan
        qkv = ops.linear(normed, layer.qkv)
        num_rotated = qkv.shape[1] - layer.num_value_columns
        first_key = num_rotated - layer.num_key_columns
        ops.rope_(qkv[:, :num_rotated], inputs.cos, inputs.sin)
        ops.store(cache, qkv[:, first_key:num_rotated], qkv[:, num_rotated:], plan)
        attended = ops.linear(ops.attend(cache, qkv[:, :first_key], plan, self._scale), layer.output)
        PULSE.beat()  # of a large model, a layer of a long prompt takes seconds
        normed = ops.rms_norm(attended, layer.mlp_norm, self._eps, residual=residual)
        return ops.linear(ops.silu_mul(ops.linear(normed, layer.gate_up)), layer.down)

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the norm of the last layer's output, both [rows, hidden size]."""
        return self._ops.rms_norm(hidden, self._final_norm, self._eps)


class RotaryAngles:
    """The rotary angles of positions, computed once.

    Args:
        rotary: transformers' module, whose angles depend on nothing but the position.
        head_dim: dimensions of a head, all of which are rotated.
        dtype, device: of the angles.

    Raises:
        NotFused: the module rotates another number of dimensions.
    """

    def __init__(self, rotary: nn.Module, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rotary = rotary
        self._head_dim = head_dim
        self._like = torch.empty(0, dtype=dtype, device=device)
        self._cos, self._sin = self._make(16)

    def prepare(self, num_positions: int) -> None:
        """Compute the angles of so many positions at load, or of the first of them if they are very many."""
        self._cos, self._sin = self._make(min(num_positions, _MAX_FIRST_ANGLES))

    def reserve(self, num_positions: int) -> None:
        """Compute the angles of that many positions, unless they are known."""
        if num_positions > len(self._cos):
            self._cos, self._sin = self._make(2 * num_positions)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, [rows, head dim], of positions that are reserved."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    def put(self, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Write what `at` returns to `cos` and `sin`."""
        torch.index_select(self._cos, 0, positions, out=cos)
        torch.index_select(self._sin, 0, positions, out=sin)

    def _make(self, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(self._like, torch.arange(num_positions, device=self._like.device)[None])
        if cos.shape[-1] != self._head_dim:
            raise NotFused(f"a rotary embedding of {cos.shape[-1]} of a head's {self._head_dim} dimensions")
        return cos[0].contiguous(), sin[0].contiguous()


def pack_layer(
    layer: Any,  # noqa: ANN401 - a module
    kernels: LayerKernels[WeightT, Any, Any],
    *,
    has_input_norm: bool = True,
) -> LayerWeights[WeightT]:
    """Pack a layer whose parts have the names that transformers gives those of a Llama layer."""
    PULSE.beat()
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach() if has_input_norm else None,
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
