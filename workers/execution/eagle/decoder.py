"""What one forward of a drafting head computes, on `kernels.LayerKernels`.

At a position the head is given the embedding of a token and, of the token before it, the target's features or,
for a token that it has drafted itself, its own state. It gives logits for the token after, and the state that
stands for the target's features there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

import torch
from torch import nn

from minedraft_workers.execution.eagle.weights import HeadWeights
from minedraft_workers.execution.fused import ForwardInputs
from minedraft_workers.execution.layers import LayerInputs, LayerStack, RotaryAngles, pack_layer
from minedraft_workers.kernels.base import LayerCacheT, LayerKernels, PagedCache, PlanT, WeightT


class HeadDecoder(Generic[WeightT, LayerCacheT, PlanT]):
    """Runs a head's layers. Matrices are [rows, ...] on the weights' device, in their dtype.

    Args:
        rotary: transformers' module. eps: of every norm.
        make_cache: makes the cache of these kernels, once the weights are packed: only then is it known what
            memory is free.

    Raises:
        NotFused: the angles are not of whole heads.
    """

    def __init__(
        self,
        weights: HeadWeights,
        rotary: nn.Module,
        kernels: LayerKernels[WeightT, LayerCacheT, PlanT],
        make_cache: Callable[[], PagedCache[LayerCacheT]],
        *,
        head_dim: int,
        eps: float,
    ) -> None:
        self._ops = kernels
        self._eps = eps
        first = weights.layers[0]
        self._input_norm, self._hidden_norm = first.input_layernorm.weight, weights.hidden_norm
        self._final_norm = weights.final_norm
        like = weights.embedding
        self.kernels = kernels.name
        self.dtype, self.device, self.hidden_size = like.dtype, like.device, like.shape[1]
        self.angles = RotaryAngles(rotary, head_dim, like.dtype, like.device)
        self._fc = kernels.pack(weights.fc.weight, weights.fc.bias)
        layers = [pack_layer(layer, kernels, has_input_norm=layer is not first) for layer in weights.layers]
        is_tied = weights.output is weights.embedding
        self._output = kernels.pack(weights.output, is_embedding=is_tied)
        self._embedding = None if is_tied else weights.embedding
        self.cache = make_cache()
        # Without a final norm, the sum of the last layer and the stream is still taken by a norm's kernel.
        last_norm = first.post_attention_layernorm.weight if self._final_norm is None else self._final_norm
        self._stack = LayerStack(kernels, layers, last_norm, self.cache, scale=head_dim**-0.5, eps=eps)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a draft token after the first reads, as stored."""
        return self._stack.read_bytes + self._ops.read_bytes(self._output)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embedding, [rows, hidden size], of int64 ids [rows]."""
        if self._embedding is None:
            return self._ops.rows(self._output, ids).to(self.dtype)
        return self._embedding.index_select(0, ids)

    def mix(self, embedded: torch.Tensor, given: torch.Tensor, *, are_states: bool) -> torch.Tensor:
        """Return the residual stream before the first layer, [rows, hidden size], in memory of its own.

        Args:
            embedded: of the tokens. given: the features or the head's own states of the tokens before them.
        """
        if self._hidden_norm is None:  # layout EAGLE: a state is a feature
            return self._ops.linear(torch.cat([embedded, given], dim=1), self._fc)
        return given.clone() if are_states else self._ops.linear(given.contiguous(), self._fc)

    @property
    def takes_states_as_features(self) -> bool:
        """Whether it makes the same of its own states as of the target's features."""
        return self._hidden_norm is None

    def compute(
        self, inputs: ForwardInputs[PlanT], given: torch.Tensor, *, are_states: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the output rows are multiplied with, and the states, both [rows, hidden size]. Nothing else is on
        the host. Arguments as of `mix`; the positions are reserved."""
        embedded = self.embed(inputs.ids)
        states = self.mix(embedded, given, are_states=are_states)
        return self.run_layers(embedded, states, *self.angles.at(inputs.positions), inputs.plan), states

    def run_layers(
        self, embedded: torch.Tensor, residual: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: PlanT
    ) -> torch.Tensor:
        """Return what the output rows are multiplied with, [rows, hidden size]; `residual` becomes the states."""
        inputs = LayerInputs(plan, cos, sin)
        if self._hidden_norm is None:
            self._stack.run(residual, residual, inputs)
            return residual
        size = self.hidden_size
        both = torch.empty(len(residual), 2 * size, dtype=self.dtype, device=self.device)
        self._ops.rms_norm(embedded, self._input_norm, self._eps, out=both[:, :size])
        self._ops.rms_norm(residual, self._hidden_norm, self._eps, out=both[:, size:])
        return self._stack.run(both, residual, inputs)

    def output(self, normed: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 [rows, columns]."""
        return self._ops.linear(normed, self._output, as_float32=True)
