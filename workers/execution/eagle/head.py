"""A drafting head as a model: forwards of spans over a paged KV cache of its own.

Position i of a request is its token i + 1 with what is known of its token i: a request of n tokens has n - 1
positions here, the last of which proposes token n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from minedraft.device import Device
from minedraft.errors import ProtocolError
from minedraft.models.heads.folder import HeadInfo
from minedraft_workers.execution.eagle.decoder import HeadDecoder
from minedraft_workers.execution.eagle.program import HeadProgram
from minedraft_workers.execution.fused import ForwardInputs
from minedraft_workers.execution.programs import MAX_ROWS
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.execution.spans import ForwardSpan, PagedModel
from minedraft_workers.kernels.base import LayerKernels
from minedraft_workers.kernels.kvcache import bring, to_device
from minedraft_workers.kernels.native_kernels import KernelPool, NativeLayerKernels

if TYPE_CHECKING:  # it needs Triton
    from minedraft_workers.execution.eagle.graphs import HeadGraphs


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutput:
    """Of the rows asked for, in the order of the spans: logits, float32 [n, columns], and the head's own states,
    [n, hidden size], to be given back with the tokens that are drafted from these logits."""

    logits: torch.Tensor
    states: torch.Tensor

    def states_of(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the states of these rows, which ascend."""
        if len(rows) == len(self.states):
            return self.states
        return self.states.index_select(0, bring(torch.tensor(rows), self.states.device))


class EagleHead(PagedModel):
    """One drafting head on one device with its KV cache. Not thread-safe: one device thread calls it.

    Attributes:
        device, kernels, kernels_reason, is_batch_invariant, draft_vocab_ids,
        weights_bytes, read_bytes: as of `Executor`; vocab_size is the target's, read_bytes of one draft token.
        max_model_len: tokens of the longest request that it drafts for.
        feature_layers: the target's layers whose outputs it is given. feature_size: numbers of a row of them.
        pool: as of `Executor`. graphs: what runs its forwards as CUDA graphs; None where they run without.
    """

    def __init__(
        self,
        info: HeadInfo,
        decoder: HeadDecoder[Any, Any, Any],
        kernels: LayerKernels[Any, Any, Any],
        draft_vocab_ids: torch.Tensor | None,
        *,
        max_model_len: int,
        device: Device,
        weights_bytes: int,
        kernels_reason: str,
    ) -> None:
        super().__init__(decoder.cache, info.vocab_size, max_model_len)
        self._decoder = decoder
        self._ops = kernels
        self.feature_layers, self.feature_size = info.feature_layers, info.feature_size
        self.draft_vocab_ids = draft_vocab_ids
        self.device = decoder.device
        self.device_name = str(device)
        self.model_name = info.name
        self.dtype_name = str(decoder.dtype).removeprefix("torch.")
        self.kernels, self.is_batch_invariant = kernels.name, kernels.is_batch_invariant
        self.kernels_reason = kernels_reason
        self.weights_bytes, self.read_bytes = weights_bytes, decoder.read_bytes
        decoder.angles.prepare(self.max_model_len)
        self._program: HeadProgram | None = None
        self.pool: KernelPool | None = None
        self.graphs: HeadGraphs | None = None
        if isinstance(kernels, NativeLayerKernels):
            self.pool = kernels.pool
            self._program = HeadProgram(decoder, kernels)
            # As in `ProgramRunner`: OpenMP's threads would go on spinning on the kernels' own cores.
            torch.set_num_threads(1)

    @property
    def num_columns(self) -> int:
        """Columns of the logits."""
        return self.vocab_size if self.draft_vocab_ids is None else len(self.draft_vocab_ids)

    def cached_len(self, request_id: int) -> int:
        """Return the number of positions that are cached for this request; 0 if it is unknown."""
        return self._tables.length(request_id)

    @torch.inference_mode()
    def forward(
        self,
        spans: Sequence[ForwardSpan],
        given: torch.Tensor,
        *,
        are_states: bool = False,
        ids: torch.Tensor | None = None,
    ) -> HeadOutput:
        """Run all spans as one packed forward.

        Args:
            spans: in positions of the head; a span's tokens are those of its positions, each one token ahead.
            given: [new positions, size], in the order of the spans: the target's features of the tokens before, or
                the head's own states of an earlier forward.
            ids: instead of the tokens in the spans, as `given` of `Executor.forward`.

        Raises:
            BlocksExhausted, ProtocolError, OutOfMemoryError (torch's): as `Executor.forward`; also for features of
                another shape.
        """
        size = self._decoder.hidden_size if are_states else self.feature_size
        wanted = [sum(len(span.tokens) for span in spans), size]
        if list(given.shape) != wanted:
            raise ProtocolError(f"the features are {list(given.shape)}, must be {wanted}")
        if not spans:
            states = torch.empty(0, self._decoder.hidden_size, dtype=self._decoder.dtype, device=self.device)
            return HeadOutput(torch.empty(0, self.num_columns, device=self.device), states)
        given = bring(given, self.device).to(self._decoder.dtype)
        return self._spans.run(
            spans, lambda rows: self._run(rows if ids is None else rows.with_given(ids), given, are_states)
        )

    def _run(self, rows: PackedRows, given: torch.Tensor, are_states: bool) -> HeadOutput:
        if not rows.is_as_given:
            given = given.index_select(0, to_device(np.argsort(rows.rows_as_given()), self.device))
        normed, states = self._compute(rows, given, are_states)
        wanted = to_device(rows.logit_rows, self.device)
        return HeadOutput(self._decoder.output(normed.index_select(0, wanted)), states.index_select(0, wanted))

    def _compute(self, rows: PackedRows, given: torch.Tensor, are_states: bool) -> Sequence[torch.Tensor]:
        """Return what `HeadDecoder.compute` does, valid until the next call; more rows may follow the forward's."""
        decoder = self._decoder
        if self.graphs is not None and (found := self.graphs.run(rows, given, are_states)) is not None:
            return found
        decoder.angles.reserve(rows.end)
        plan = self._ops.plan(decoder.cache, rows.spans)
        positions = to_device(rows.positions, self.device)
        inputs = ForwardInputs(rows.ids_on(self.device), positions, plan)
        if self._program is not None and len(rows.ids) <= MAX_ROWS:
            embedded = decoder.embed(inputs.ids)
            states = decoder.mix(embedded, given, are_states=are_states)
            return self._program.run(embedded, states, *decoder.angles.at(positions), plan)
        return decoder.compute(inputs, given, are_states=are_states)
