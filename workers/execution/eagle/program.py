"""A head's layers on few rows as one call of the native library; the bits are those of the calls one by one."""

from __future__ import annotations

from typing import Any

import torch

from minedraft_workers.execution.eagle.decoder import HeadDecoder
from minedraft_workers.execution.programs import MAX_ROWS
from minedraft_workers.kernels.native_kernels import NativeLayerKernels, SpanPlan


class HeadProgram:
    """The recorded layers of `decoder`, which is on `kernels`, for forwards of up to `MAX_ROWS` rows."""

    def __init__(self, decoder: HeadDecoder[Any, Any, Any], kernels: NativeLayerKernels) -> None:
        self._native = kernels
        first = torch.zeros(MAX_ROWS, dtype=torch.int64)
        self._embedded = decoder.embed(first)
        self._residual = torch.zeros_like(self._embedded)
        self._cos, self._sin = decoder.angles.at(first)
        pool = decoder.cache.pool
        with kernels.recording(MAX_ROWS, pool.num_blocks, pool.block_size) as program:
            self._normed = decoder.run_layers(self._embedded, self._residual, self._cos, self._sin, program.plan)
        self._program = program

    def run(
        self, embedded: torch.Tensor, residual: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: SpanPlan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `HeadDecoder.run_layers` does, and the states, both valid until the next call."""
        num_rows = len(embedded)
        self._embedded[:num_rows], self._residual[:num_rows] = embedded, residual
        self._cos[:num_rows], self._sin[:num_rows] = cos, sin
        self._native.run(self._program, plan)
        return self._normed[:num_rows], self._residual[:num_rows]
