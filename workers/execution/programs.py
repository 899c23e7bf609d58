"""Forwards of few rows as one call of the native library: the layers' kernel calls, recorded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from minedraft_workers.execution.fused import FusedDecoder
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.native_kernels import NativeLayerKernels
from minedraft_workers.kernels.tables import BlockTables

# Rows that a program has memory for. In a longer forward, a prompt's, the calls cost nothing beside the work.
MAX_ROWS = 64


class ProgramRunner:
    """Runs what fits by the program of its layers, and everything else call by call; the bits are the same.

    Args:
        decoder: on `kernels`.
    """

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], kernels: NativeLayerKernels) -> None:
        self.kernels = decoder.kernels
        self.is_batch_invariant = decoder.is_batch_invariant
        self._decoder = decoder
        self._native = kernels
        self._cache = decoder.cache
        first = torch.zeros(MAX_ROWS, dtype=torch.int64)
        self._residual = decoder.embed(first)
        self._cos, self._sin = decoder.angles(first)
        pool = decoder.tables.pool
        with kernels.recording(MAX_ROWS, pool.num_blocks, pool.block_size) as program:
            self._normed = decoder.run_layers(self._residual, self._cos, self._sin, program.plan)
        self._program = program
        # What is left to torch is small, and OpenMP's threads would go on spinning on the cores of the kernels' own.
        torch.set_num_threads(1)

    @property
    def tables(self) -> BlockTables:
        return self._decoder.tables

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Implements `Runner`."""
        num_rows = len(rows.ids)
        if num_rows > MAX_ROWS:
            return self._decoder.run(rows)
        decoder = self._decoder
        decoder.reserve_positions(int(rows.positions.max()) + 1)
        self._residual[:num_rows] = decoder.embed(torch.from_numpy(rows.ids))
        cos, sin = decoder.angles(torch.from_numpy(rows.positions))
        self._cos[:num_rows], self._sin[:num_rows] = cos, sin
        self._native.run(self._program, self._native.plan(self._cache, rows.spans))
        if np.array_equal(rows.logit_rows, np.arange(num_rows)):
            return decoder.output(self._normed[:num_rows])
        return decoder.output(self._normed.index_select(0, torch.from_numpy(rows.logit_rows)))
