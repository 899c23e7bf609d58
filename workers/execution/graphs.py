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

from minedraft_workers.execution.fused import ForwardInputs, FusedDecoder
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import BlockTables
from minedraft_workers.kernels.triton_kernels import PiecePlan, PlanSize, fill_plan

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
        self._graphs: dict[PlanSize, _Graph] = {}
        # Their memory may move when they grow, and a graph would not see it.
        decoder.reserve_positions(self._width * pool.block_size)

    @property
    def tables(self) -> BlockTables:
        return self._decoder.tables

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Implements `Runner`."""
        size = self._round_up(PlanSize.of(rows.spans))
        # A graph computes the logits of all rows: too many, where a prompt's last row is all that is wanted.
        if size is None or 2 * len(rows.logit_rows) < len(rows.ids):
            return self._decoder.run(rows)
        graph = self._graphs.get(size)
        if graph is None:
            graph = self._graphs[size] = _Graph(self._decoder, size)
        graph.load(rows)
        if self._captures:
            self._captures = graph.capture()
        logits = graph.replay()
        return logits.index_select(0, to_device(rows.logit_rows, logits.device))

    def _round_up(self, least: PlanSize) -> PlanSize | None:
        num_rows, num_pieces = (
            next((size for size in SIZES if size >= wanted), None) for wanted in (least.num_rows, least.num_pieces)
        )
        if num_rows is None or num_pieces is None or least.width > self._width:
            return None
        return PlanSize(num_rows, num_pieces, self._width)


class _Graph:
    """The buffers of one size and, once it is captured, their graph."""

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], size: PlanSize) -> None:
        self._decoder = decoder
        self._size = size
        device = decoder.device
        self._rows = torch.zeros(2, size.num_rows, dtype=torch.int64, device=device)
        self._plan = PiecePlan(torch.zeros(size.num_numbers, dtype=torch.int64, device=device), size, has_padding=True)
        self._inputs = ForwardInputs(self._rows[0], self._rows[1], self._plan)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: torch.Tensor | None = None

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
                self._decoder.compute(self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._logits = self._decoder.compute(self._inputs)
        except RuntimeError as error:
            logger.warning("this model runs without CUDA graphs: %s", " ".join(str(error).split())[:300])
            return False
        self._graph = graph
        return True

    def replay(self) -> torch.Tensor:
        """Return the logits of all rows, float32 [rows, columns], valid until the next replay."""
        if self._graph is None or self._logits is None:
            return self._decoder.compute(self._inputs)
        self._graph.replay()
        return self._logits
