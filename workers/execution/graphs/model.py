"""A model whose forwards of few rows run as CUDA graphs. Not yet run on a GPU.

A graph ends before the output layer, so that it keeps no logits of rows that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from minedraft_workers.execution.features import FeatureLayers, ForwardOutput
from minedraft_workers.execution.fused import FusedDecoder
from minedraft_workers.execution.graphs.buffers import PaddedInputs
from minedraft_workers.execution.graphs.capture import Capture, Computed
from minedraft_workers.execution.graphs.sizes import GraphSet
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import BlockTables


@dataclass(frozen=True, slots=True)
class _ModelForward:
    """A forward that gives the normed output of the last layer, and the features of these layers."""

    decoder: FusedDecoder[Any, Any, Any]
    wanted: FeatureLayers
    given_size = 0

    def compute(self, inputs: PaddedInputs) -> Computed:
        """Implements `ForwardKind`."""
        output = self.decoder.compute_hidden(inputs.forward, self.wanted)
        return output.logits, output.features


class GraphRunner:
    """Runs what fits in a graph by its graph, and everything else by the decoder.

    Where features are wanted before the graphs are captured, all graphs give them, which costs a copy for each layer
    more; where they are wanted later, the graphs that give them are captured when they are first used.

    Args:
        decoder: on `TritonLayerKernels`.
        max_model_len: positions that can occur.
        capture: see `Capture`.

    Attributes:
        kernels: also says for how many rows there are graphs.
    """

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], max_model_len: int, capture: Capture) -> None:
        self.kernels = decoder.kernels
        self.is_batch_invariant = decoder.is_batch_invariant
        self._decoder = decoder
        like = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
        self._graphs: GraphSet[_ModelForward] = GraphSet(decoder.tables, like, max_model_len, decoder.kernels, capture)
        self._plain = self._kind = _ModelForward(decoder, FeatureLayers())
        # Their memory may move when they grow, and a graph would not see it.
        decoder.reserve_positions(min(max_model_len, self._graphs.capacity))

    @property
    def tables(self) -> BlockTables:
        return self._decoder.tables

    def capture(self, say: Callable[[str], object] = lambda text: None) -> None:
        """Implements `GraphCapturing`."""
        self._graphs.capture([self._kind], say)
        self.kernels = self._graphs.kernels

    def want_features(self, wanted: FeatureLayers) -> None:
        """Implements `Runner`."""
        self._decoder.want_features(wanted)
        self._kind = _ModelForward(self._decoder, wanted) if wanted.layers else self._plain
        # Those captured for other features are of no more use.
        self._graphs.drop(lambda kind: kind not in (self._kind, self._plain))

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Implements `Runner`."""
        kind = self._plain if self._plain in self._graphs.kinds else self._kind
        output = self._graphs.replay(kind, rows)
        return self._decoder.run(rows) if output is None else self._logits(rows, output[0])

    def run_with_features(self, rows: PackedRows) -> ForwardOutput:
        """Implements `Runner`."""
        output = self._graphs.replay(self._kind, rows)
        if output is None:
            return self._decoder.run_with_features(rows)
        normed, features = output
        # A copy: the next replay overwrites the graph's own.
        return ForwardOutput(self._logits(rows, normed), features[: len(rows.ids)].clone())

    def _logits(self, rows: PackedRows, normed: torch.Tensor) -> torch.Tensor:
        """Return the logits asked for of the normed output of the last layer."""
        return self._decoder.output(normed.index_select(0, to_device(rows.logit_rows, normed.device)))
