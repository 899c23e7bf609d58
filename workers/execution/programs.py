"""Forwards of few rows as one call of the native library: the layers' kernel calls, recorded once."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from minedraft_workers.execution.features import AFTER_FINAL_NORM, FeatureLayers, ForwardOutput
from minedraft_workers.execution.fused import FusedDecoder
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.native_kernels import KernelPool, NativeLayerKernels, Program
from minedraft_workers.kernels.tables import BlockTables

# Rows that a program has memory for: a chunk of a prompt and what is decoded beside it. Without one, the ways into the
# library cost as much as a tenth of a small model's chunk.
MAX_ROWS = 320


class ProgramRunner:
    """Runs what fits by the program of its layers, and everything else call by call; the bits are the same.

    Where features are wanted, the same calls are recorded in several programs, one up to each wanted layer.

    Args:
        decoder: on `kernels`.
    """

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], kernels: NativeLayerKernels) -> None:
        self.kernels = decoder.kernels
        self.is_batch_invariant = decoder.is_batch_invariant
        self._decoder = decoder
        self._native = kernels
        self._cache = decoder.cache
        self._wanted = FeatureLayers()
        first = torch.zeros(MAX_ROWS, dtype=torch.int64)
        self._residual = decoder.embed(first)
        self._cos, self._sin = decoder.angles(first)
        self._whole, self._normed = self._record(())
        self._pieces: list[tuple[Program, int]] = []
        # What is left to torch is small, and OpenMP's threads would go on spinning on the cores of the kernels' own.
        torch.set_num_threads(1)

    @property
    def tables(self) -> BlockTables:
        return self._decoder.tables

    def want_features(self, wanted: FeatureLayers) -> None:
        """Implements `Runner`."""
        self._wanted = wanted
        self._decoder.want_features(wanted)
        num_layers = self._decoder.num_layers
        cuts = wanted.inside(num_layers)
        programs, normed = self._record(cuts) if cuts else (self._whole, self._normed)
        assert normed is self._normed, "recorded calls share the memory of their results"
        self._pieces = list(zip(programs, (*cuts, num_layers), strict=True))

    @property
    def pool(self) -> KernelPool:
        """The kernels' threads. The programs are made for any number of them."""
        return self._native.pool

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Implements `Runner`."""
        num_rows = len(rows.ids)
        if num_rows > MAX_ROWS:
            return self._decoder.run(rows)
        self._load(rows)
        self._native.run(self._whole[0], self._native.plan(self._cache, rows.spans))
        return self._output(rows)

    def run_with_features(self, rows: PackedRows) -> ForwardOutput:
        """Implements `Runner`."""
        num_rows = len(rows.ids)
        if num_rows > MAX_ROWS:
            return self._decoder.run_with_features(rows)
        self._load(rows)
        residual = self._residual[:num_rows]
        features = self._wanted.empty(num_rows, residual)
        self._wanted.put(features, 0, residual)
        plan = self._native.plan(self._cache, rows.spans)
        for program, layer in self._pieces:
            self._native.run(program, plan)
            self._wanted.put(features, layer, residual)
        self._wanted.put(features, AFTER_FINAL_NORM, self._normed[:num_rows])
        return ForwardOutput(self._output(rows), features)

    def _record(self, cuts: tuple[int, ...]) -> tuple[list[Program], torch.Tensor]:
        """Return the programs, one after the other, that end after each of these layers and at the end, and where
        the normed output is then."""
        pool = self._decoder.tables.pool
        programs: list[Program] = []
        with ExitStack() as recording:

            def begin() -> None:
                program = self._native.recording(MAX_ROWS, pool.num_blocks, pool.block_size)
                programs.append(recording.enter_context(program))

            def see(layer: int, stream: torch.Tensor) -> None:
                if layer in cuts:
                    recording.close()
                    begin()

            begin()
            normed = self._decoder.run_layers(self._residual, self._cos, self._sin, programs[0].plan, see)
        return programs, normed

    def _load(self, rows: PackedRows) -> None:
        """Put a forward's rows where the programs read them."""
        num_rows, decoder = len(rows.ids), self._decoder
        decoder.reserve_positions(rows.end)
        self._residual[:num_rows] = decoder.embed(rows.ids_on(decoder.device))
        decoder.put_angles(torch.from_numpy(rows.positions), self._cos[:num_rows], self._sin[:num_rows])

    def _output(self, rows: PackedRows) -> torch.Tensor:
        """Return the logits asked for of the normed output."""
        if rows.wants_all:
            return self._decoder.output(self._normed[: len(rows.ids)])
        return self._decoder.output(self._normed.index_select(0, torch.from_numpy(rows.logit_rows)))
