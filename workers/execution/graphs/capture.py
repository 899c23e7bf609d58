"""Captures a computation as a CUDA graph. Not yet run on a GPU: tested with fakes of torch's calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

Computed = tuple[torch.Tensor, ...]


class Graph(Protocol):
    """A computation that was captured. output: what it gave, in memory that each replay writes anew."""

    output: Computed

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Computed]], Graph]
"""Makes a graph of a computation; it raises OutOfMemoryError (torch's) for want of memory, RuntimeError if the
computation cannot be captured."""


class CudaGraphs:
    """Captures computations of one device, in the thread that calls it, with one pool of memory for all.

    All are captured in one stream, where each computation has run before: then programs are compiled and libraries
    loaded, and cuBLAS has made its workspace, of which it has one for each stream.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        # Of a graph that lives: torch refuses the pool of graphs that are all gone.
        self._latest: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def __call__(self, compute: Callable[[], Computed]) -> Graph:
        """Implements `Capture`."""
        home = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream, graph, latest = self._stream, torch.cuda.CUDAGraph(), self._latest()
        pool: Any = None if latest is None else latest.pool()
        try:
            stream.wait_stream(home)
            with torch.cuda.stream(stream):
                compute()
            home.wait_stream(stream)
            # The server's thread goes on meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                output = compute()
        except RuntimeError as error:
            torch.cuda.set_stream(home)  # the end of a capture that fails leaves its own one current
            refusal = _without_frames(error)
        else:
            self._latest = weakref.ref(graph)
            return _CudaGraph(graph, output)
        raise refusal


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: Computed) -> None:
        self._graph = graph
        self.output = output

    def replay(self) -> None:
        self._graph.replay()


def _without_frames(error: RuntimeError) -> RuntimeError:
    """Return the same error without the frames that hold what was computed, as torch's OutOfMemoryError if it is for
    want of memory: the driver and cuBLAS say that by other errors, and the end of a capture that has failed raises one
    of its own."""
    for found in (error, error.__context__):
        text = str(found)
        if "out of memory" in text or "ALLOC_FAILED" in text:
            return torch.OutOfMemoryError(text)
    return RuntimeError(str(error))
