"""Forwards of few rows as captured CUDA graphs, one for each number of rows. Not yet run on a GPU.

A forward of a small model is bound by the time that its few hundred launches take; a graph is one launch.
It reads and writes always the same memory: a forward is brought to the next size with rows and pieces of
padding, copied into the buffers of that size, and replayed. A graph ends before the output layer, so that it keeps no
logits of rows that nobody asks for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from minedraft.errors import MemoryExhausted
from minedraft_workers.execution.features import FeatureLayers, ForwardOutput
from minedraft_workers.execution.fused import ForwardInputs, FusedDecoder
from minedraft_workers.execution.memory import first_sentence
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.tables import BlockTables
from minedraft_workers.kernels.triton_kernels import PiecePlan, fill_plan
from minedraft_workers.pulse import PULSE

logger = logging.getLogger("minedraft.worker")

# Rows of a graph, and pieces, of which there are no more than rows; a longer forward runs without.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640)


class Graph(Protocol):
    """A computation that was captured. output: what it gave, in memory that each replay writes anew."""

    output: ForwardOutput

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], ForwardOutput]], Graph]


class GraphRunner:
    """Runs what fits in a graph by its graph, and everything else by the decoder.

    Args:
        decoder: on `TritonLayerKernels`.
        max_model_len: positions that can occur.
        capture: makes a graph of a computation; it raises RuntimeError if that cannot be, OutOfMemoryError (torch's)
            for want of memory.

    Attributes:
        kernels: also says for how many rows there are graphs.
    """

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], max_model_len: int, capture: Capture) -> None:
        self.kernels = decoder.kernels
        self.is_batch_invariant = decoder.is_batch_invariant
        self._decoder = decoder
        self._capture = capture
        pool = decoder.tables.pool
        self._width = pool.num_blocks_for(min(max_model_len, pool.num_blocks * pool.block_size))
        self._sizes: list[int] = []  # of which there are graphs, ascending
        self._graphs: dict[tuple[int, bool], _Buffers | None] = {}  # by rows, and whether they give features
        # Their memory may move when they grow, and a graph would not see it.
        decoder.reserve_positions(self._width * pool.block_size)

    @property
    def tables(self) -> BlockTables:
        return self._decoder.tables

    def capture(self, say: Callable[[str], object] = lambda text: None) -> None:
        """Capture the graphs of all sizes, in the thread that will replay them, the largest first: the others then
        use its memory. A size for which there is no memory runs without, or in a larger one.

        Args:
            say: told how far it has got.

        Raises:
            MemoryExhausted: there is no memory for any of them.
        """
        start_s, cause = time.monotonic(), ""
        logger.info("capturing %d CUDA graphs, of %d to %d rows", len(SIZES), SIZES[0], SIZES[-1])
        self._sizes, self._graphs = [], {}
        for index, size in enumerate(reversed(SIZES)):
            say(f"captured {index} of {len(SIZES)} CUDA graphs in {time.monotonic() - start_s:.1f} s")
            PULSE.beat()
            try:
                self._graphs[size, False] = self._make(size, has_features=False)
            except torch.OutOfMemoryError as error:
                cause = first_sentence(error)
            except RuntimeError as error:
                self._give_up(error)
                return
            else:
                self._sizes.insert(0, size)
        self._report(time.monotonic() - start_s, cause)

    def _report(self, seconds: float, cause: str) -> None:
        """Say of how many sizes there are graphs, and why not of more."""
        if not self._sizes:
            raise MemoryExhausted(f"no memory for a CUDA graph of {SIZES[0]} rows: {cause}")
        largest = self._sizes[-1]
        self.kernels = f"{self._decoder.kernels} (graphs of up to {largest} rows)"
        logger.info("captured %d of %d CUDA graphs in %.1f s", len(self._sizes), len(SIZES), seconds)
        if cause:
            missing = ", ".join(str(size) for size in SIZES if size not in self._sizes)
            self.kernels = f"{self._decoder.kernels} (graphs of up to {largest} rows, no memory for {missing})"
            hint = "a lower memory_share leaves more"
            logger.warning("no memory for CUDA graphs of %s rows, which run without: %s; %s", missing, cause, hint)

    def _give_up(self, error: RuntimeError) -> None:
        logger.warning("this model runs without CUDA graphs: %s", " ".join(str(error).split())[:300])
        self._sizes, self._graphs = [], {}
        self.kernels = f"{self._decoder.kernels} (no graphs: this model cannot be captured)"

    def _make(self, size: int, *, has_features: bool) -> _Buffers:
        """Return the graph of a size. Raise as `Capture`; nothing of it is left then."""
        buffers = _Buffers(self._decoder, size, self._width)
        try:
            buffers.graph = self._capture(
                lambda: self._decoder.compute_hidden(buffers.inputs, has_features=has_features)
            )
        except torch.OutOfMemoryError as error:
            out_of_memory = error.with_traceback(None)
        else:
            return buffers
        # Only here, where no traceback holds what was computed.
        torch.cuda.empty_cache()
        raise out_of_memory

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
        """Return what the graph of this forward gives for its rows and its padding, valid until the next replay; None
        if there is none for it."""
        size = next((size for size in self._sizes if size >= len(rows.ids)), None)
        if size is None or max(span.num_blocks for span in rows.spans) > self._width:
            return None
        if (size, has_features) not in self._graphs:
            self._graphs[size, has_features] = self._make_late(size)
        buffers = self._graphs[size, has_features]
        if buffers is None or buffers.graph is None:
            return None
        buffers.load(rows)
        PULSE.beat()
        buffers.graph.replay()
        return buffers.graph.output

    def _make_late(self, size: int) -> _Buffers | None:
        """Return a graph that gives features: only a command says of which layers. None if it cannot be captured."""
        try:
            return self._make(size, has_features=True)
        except RuntimeError as error:
            logger.warning("no CUDA graph of %d rows with features: %s", size, " ".join(str(error).split())[:300])
            return None

    def _logits(self, rows: PackedRows, output: ForwardOutput) -> torch.Tensor:
        """Return the logits asked for; `output.logits` are the normed outputs of the last layer."""
        return self._decoder.output(output.logits.index_select(0, to_device(rows.logit_rows, output.logits.device)))


class _Buffers:
    """The input of one size of forward, always in the same memory, and the graph that reads it.

    What a forward leaves unused of the tables of blocks keeps what was there before: nothing reads it.
    """

    def __init__(self, decoder: FusedDecoder[Any, Any, Any], num_rows: int, width: int) -> None:
        self._pool = decoder.tables.pool
        self.graph: Graph | None = None
        # Ids, positions, slots, and pieces of three numbers each.
        self._fixed = torch.zeros(6, num_rows, dtype=torch.int64, device=decoder.device)
        ids, positions, slots = self._fixed[:3]
        slots.fill_(self._padding_slot)
        pieces = self._fixed[3:]
        tables = torch.zeros(num_rows, width, dtype=torch.int64, device=decoder.device)
        self._plan = PiecePlan(pieces.reshape(-1, 3), tables, slots, has_padding=True)
        self.inputs = ForwardInputs(ids, positions, self._plan)

    @property
    def _padding_slot(self) -> int:
        return self._pool.num_blocks * self._pool.block_size

    def load(self, rows: PackedRows) -> None:
        """Copy a forward's input into the buffers, filled up with padding: one copy from the host."""
        num_rows = len(rows.ids)
        plan = fill_plan(rows.spans, self._pool.block_size)
        host = np.zeros(self._fixed.shape, dtype=np.int64)
        host[0, :num_rows], host[1, :num_rows] = rows.ids, rows.positions
        host[2] = self._padding_slot
        host[2, :num_rows] = plan.slots
        host[3:].reshape(-1)[: plan.pieces.size] = plan.pieces.ravel()
        sent = to_device(np.concatenate([host.ravel(), plan.tables.ravel()]), self._fixed.device)
        self._fixed.copy_(sent[: host.size].view(host.shape))
        if rows.given is not None:
            self.inputs.ids[:num_rows].copy_(rows.given)
        num_pieces, width = plan.tables.shape
        self._plan.tables[:num_pieces, :width].copy_(sent[host.size :].view(num_pieces, width))


class CudaGraphs:
    """Captures computations of one device, in the thread that calls it, with one pool of memory for all."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Callable[[], ForwardOutput]) -> Graph:
        """Implements `Capture`."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # programs are compiled and libraries loaded before, not while capturing
            compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # The server's thread goes on meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = compute()
        except RuntimeError as error:
            # The end of a capture that has failed may raise an error of its own.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from error
            raise
        return _CudaGraph(graph, output)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: ForwardOutput) -> None:
        self._graph = graph
        self.output = output

    def replay(self) -> None:
        self._graph.replay()
