"""Forwards of few rows as captured CUDA graphs, one for each size. Not yet run on a GPU.

A forward of a small model is bound by the time that its few hundred launches take; a graph is one launch.
It reads and writes always the same memory: a forward is brought to the next size with rows and pieces of
padding, copied into the buffers of that size, and replayed.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from minedraft_workers.execution.features import FeatureLayers, ForwardOutput
from minedraft_workers.execution.fused import ForwardInputs, FusedDecoder
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import BlockTables
from minedraft_workers.kernels.triton_kernels import PiecePlan, PlanSize, fill_plan
from minedraft_workers.pulse import PULSE

logger = logging.getLogger("minedraft.worker")

# Sizes of a graph, in rows and in pieces; a longer forward, such as a prompt's, runs without.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640)


class GraphRunner:
    """Runs what fits in a graph by its graph, and everything else by the decoder.

    Args:
        decoder: on `TritonLayerKernels`.
        max_model_len: positions that can occur.
        captures: whether to capture. Without, the decoder runs over the same padded buffers: on a CPU, to test them.
    """

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], max_model_len: int, *, captures: bool = True) -> None:
        self.kernels = decoder.kernels
        self.is_batch_invariant = decoder.is_batch_invariant
        self._decoder = decoder
        self._captures = captures
        pool = decoder.tables.pool
        self._width = pool.num_blocks_for(min(max_model_len, pool.num_blocks * pool.block_size))
        self._graphs: dict[tuple[PlanSize, bool], _Graph] = {}
        # Their memory may move when they grow, and a graph would not see it.
        decoder.reserve_positions(self._width * pool.block_size)

    @property
    def tables(self) -> BlockTables:
        return self._decoder.tables

    def want_features(self, wanted: FeatureLayers) -> None:
        """Implements `Runner`."""
        self._decoder.want_features(wanted)
        # Those captured for other features are of no more use.
        self._graphs = {key: graph for key, graph in self._graphs.items() if not key[1]}

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Implements `Runner`."""
        output = self._replay(rows, has_features=False)
        return self._decoder.run(rows) if output is None else self._logits(rows, output)

    def run_with_features(self, rows: PackedRows) -> ForwardOutput:
        """Implements `Runner`."""
        output = self._replay(rows, has_features=True)
        if output is None:
            return self._decoder.run_with_features(rows)
        # A copy: the next replay overwrites the graph's own.
        return ForwardOutput(self._logits(rows, output), output.features[: len(rows.ids)].clone())

    def _replay(self, rows: PackedRows, *, has_features: bool) -> ForwardOutput | None:
        """Return what the graph of this forward gives for its rows and its padding; None if it is not for a graph."""
        size = self._round_up(PlanSize.of(rows.spans))
        # A graph computes the logits of all rows: too many, where a prompt's last row is all that is wanted.
        if size is None or 2 * len(rows.logit_rows) < len(rows.ids):
            return None
        graph = self._graphs.get((size, has_features))
        if graph is None:
            graph = self._graphs[size, has_features] = _Graph(self._decoder, size, has_features=has_features)
        graph.load(rows)
        if self._captures:
            self._captures = graph.capture()
        return graph.replay()

    def _logits(self, rows: PackedRows, output: ForwardOutput) -> torch.Tensor:
        return output.logits.index_select(0, to_device(rows.logit_rows, output.logits.device))

    def _round_up(self, least: PlanSize) -> PlanSize | None:
        num_rows, num_pieces = (
            next((size for size in SIZES if size >= wanted), None) for wanted in (least.num_rows, least.num_pieces)
        )
        if num_rows is None or num_pieces is None or least.width > self._width:
            return None
        return PlanSize(num_rows, num_pieces, self._width)


class _Graph:
    """The buffers of one size and, once it is captured, their graph."""

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], size: PlanSize, *, has_features: bool) -> None:
        self._decoder = decoder
        self._size = size
        self._has_features = has_features
        device = decoder.device
        self._rows = torch.zeros(2, size.num_rows, dtype=torch.int64, device=device)
        self._plan = PiecePlan(torch.zeros(size.num_numbers, dtype=torch.int64, device=device), size, has_padding=True)
        self._inputs = ForwardInputs(self._rows[0], self._rows[1], self._plan)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: ForwardOutput | None = None

    def load(self, rows: PackedRows) -> None:
        """Copy a forward's input into the buffers, filled up with padding."""
        pool = self._decoder.tables.pool
        host = np.zeros((2, self._size.num_rows), dtype=np.int64)
        host[0, : len(rows.ids)], host[1, : len(rows.positions)] = rows.ids, rows.positions
        plan = fill_plan(rows.spans, self._size, pool.block_size, pool.num_blocks * pool.block_size)
        for buffer, array in ((self._rows, host), (self._plan.buffer, plan)):
            buffer.copy_(to_device(array, buffer.device))

    def capture(self) -> bool:
        """Capture the graph, unless it is captured. Return False if this model cannot be."""
        if self._graph is not None:
            return True
        try:
            side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # programs are compiled and libraries loaded before, not while capturing
                self._compute()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._output = self._compute()
        except RuntimeError as error:
            logger.warning("this model runs without CUDA graphs: %s", " ".join(str(error).split())[:300])
            return False
        self._graph = graph
        return True

    def replay(self) -> ForwardOutput:
        """Return the logits, float32 [rows, columns], and features of all rows, valid until the next replay."""
        if self._graph is None or self._output is None:
            return self._compute()
        PULSE.beat()
        self._graph.replay()
        return self._output

    def _compute(self) -> ForwardOutput:
        if self._has_features:
            return self._decoder.compute_with_features(self._inputs)
        logits = self._decoder.compute(self._inputs)
        return ForwardOutput(logits, logits.new_empty(len(logits), 0))
