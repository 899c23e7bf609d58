"""The graphs of a model's forwards, one for each number of rows. Not yet run on a GPU.

A forward of a small model is bound by the time that its few hundred launches take; a graph is one launch.
It reads and writes always the same memory: a forward is brought to the next size with rows and pieces of
padding, copied into the buffers of that size, and replayed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from minedraft.errors import MemoryExhausted
from minedraft_workers.execution.graphs.buffers import PaddedInputs
from minedraft_workers.execution.graphs.capture import Capture, Computed, Graph
from minedraft_workers.execution.memory import first_sentence
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.tables import BlockTables
from minedraft_workers.pulse import PULSE

logger = logging.getLogger("minedraft.worker")

# Rows of a graph, and pieces, of which there are no more than rows; a longer forward runs without.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640)


class ForwardKind(Hashable, Protocol):
    """What a forward computes; equal ones have the same graphs."""

    @property
    def given_size(self) -> int:
        """Numbers that a row is given beside its token."""
        ...

    def compute(self, inputs: PaddedInputs) -> Computed:
        """Return matrices of as many rows as the inputs. Nothing else happens on the host but the launches."""
        ...


KindT = TypeVar("KindT", bound=ForwardKind)


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    inputs: PaddedInputs
    graph: Graph


class GraphSet(Generic[KindT]):
    """Captures graphs, and runs by them what fits.

    Args:
        tables: of the cache that they read and write.
        like: has the dtype and the device of the model.
        max_model_len: positions that can occur.
        kernels: what computes, for people.
        capture: see `Capture`.

    Attributes:
        width: blocks of the longest request.
        kernels: also says for how many rows there are graphs, once they are captured.
    """

    def __init__(
        self, tables: BlockTables, like: torch.Tensor, max_model_len: int, kernels: str, capture: Capture
    ) -> None:
        self._pool = tables.pool
        self._like = like
        self._name = self.kernels = kernels
        self._capture = capture
        self.width = self._pool.num_blocks_for(min(max_model_len, self.capacity))
        self._sizes: list[int] = []  # of which there are graphs, ascending
        self._graphs: dict[tuple[int, KindT], _Captured | None] = {}

    @property
    def capacity(self) -> int:
        """Tokens that the cache holds."""
        return self._pool.num_blocks * self._pool.block_size

    @property
    def kinds(self) -> set[KindT]:
        """The kinds of forward that there are graphs of."""
        return {kind for _, kind in self._graphs}

    def capture(self, kinds: Sequence[KindT], say: Callable[[str], object]) -> None:
        """Capture the graphs of all sizes, in the thread that will replay them, the largest first: the others then
        use its memory. A size for which there is no memory runs without, or in a larger one.

        Args:
            kinds: of each size, the graphs to capture.
            say: told how far it has got.

        Raises:
            MemoryExhausted: there is no memory for any of them.
        """
        start_s, cause = time.monotonic(), ""
        logger.info("capturing %d CUDA graphs, of %d to %d rows", len(SIZES) * len(kinds), SIZES[0], SIZES[-1])
        self._sizes, self._graphs = [], {}
        for index, size in enumerate(reversed(SIZES)):
            say(f"captured {index} of {len(SIZES)} sizes of CUDA graphs in {time.monotonic() - start_s:.1f} s")
            try:
                made = {(size, kind): self._make(size, kind) for kind in kinds}
            except torch.OutOfMemoryError as error:
                cause = first_sentence(error)
            except RuntimeError as error:
                self._give_up(error)
                return
            else:
                self._graphs |= made
                self._sizes.insert(0, size)
        self._report(time.monotonic() - start_s, cause)

    def _report(self, seconds: float, cause: str) -> None:
        """Say of how many sizes there are graphs, and why not of more."""
        if not self._sizes:
            raise MemoryExhausted(f"no memory for a CUDA graph of {SIZES[0]} rows: {cause}")
        largest = self._sizes[-1]
        self.kernels = f"{self._name} (graphs of up to {largest} rows)"
        logger.info("captured %d of %d sizes of CUDA graphs in %.1f s", len(self._sizes), len(SIZES), seconds)
        if cause:
            missing = ", ".join(str(size) for size in SIZES if size not in self._sizes)
            self.kernels = f"{self._name} (graphs of up to {largest} rows, no memory for {missing})"
            hint = "a lower memory_share leaves more"
            logger.warning("no memory for CUDA graphs of %s rows, which run without: %s; %s", missing, cause, hint)

    def _give_up(self, error: RuntimeError) -> None:
        logger.warning("this model runs without CUDA graphs: %s", _shorten(error))
        self._sizes, self._graphs = [], {}
        self.kernels = f"{self._name} (no graphs: this model cannot be captured)"

    def _make(self, size: int, kind: KindT) -> _Captured:
        """Return a graph. Raise as `Capture`; nothing of it is left then."""
        PULSE.beat()
        inputs = PaddedInputs(self._pool, size, self.width, kind.given_size, self._like)
        try:
            return _Captured(inputs, self._capture(lambda: kind.compute(inputs)))
        except torch.OutOfMemoryError as error:
            out_of_memory = error.with_traceback(None)
        # Only here, where no traceback holds what was computed.
        torch.cuda.empty_cache()
        raise out_of_memory

    def drop(self, is_stale: Callable[[KindT], bool]) -> None:
        """Forget the graphs of some kinds."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if not is_stale(key[1])}

    def replay(self, kind: KindT, rows: PackedRows, given: torch.Tensor | None = None) -> Computed | None:
        """Return what the graph of this forward gives for its rows and its padding, valid until the next replay; None
        if there is none for it. One of a kind that was not captured with the others is captured now.

        Args:
            given: [rows, kind.given_size], on the device.
        """
        size = next((size for size in self._sizes if size >= len(rows.ids)), None)
        if size is None or max(span.num_blocks for span in rows.spans) > self.width:
            return None
        if (size, kind) not in self._graphs:
            self._graphs[size, kind] = self._make_late(size, kind)
        captured = self._graphs[size, kind]
        if captured is None:
            return None
        captured.inputs.load(rows, given)
        PULSE.beat()
        captured.graph.replay()
        return captured.graph.output

    def _make_late(self, size: int, kind: KindT) -> _Captured | None:
        try:
            return self._make(size, kind)
        except RuntimeError as error:
            logger.warning("no CUDA graph of %d rows of this kind: %s", size, _shorten(error))
            return None


def _shorten(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:300]
