"""What happens around a capture, with fakes of torch's calls that keep the rules of the real ones: no GPU has run this.

The rules are those of CUDAGraph.cpp and CUDACachingAllocator.cpp: a pool may be named only while a graph lives that
uses it; a capture whose end fails leaves its stream current.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from minedraft_workers.execution.graphs.capture import CudaGraphs

NO_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ..."
INVALIDATED = "CUDA error: operation failed due to a previous error during capture"


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


class FakeCuda:
    """The part of torch.cuda that a capture calls.

    Attributes:
        current: the current stream. fails_at_end: what the end of the next capture raises.
        pools: of each capture, the pool that it names; None for one of its own.
    """

    def __init__(self) -> None:
        self.current = self.home = Stream()
        self.fails_at_end = ""
        self.pools: list[int | None] = []
        self._living: dict[int, weakref.WeakSet[FakeGraph]] = {}
        self.num_streams = 0

    def new_stream(self) -> Stream:
        self.num_streams += 1
        return Stream()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, pool: int | None, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert pool is None or self._living[pool], "INTERNAL ASSERT FAILED: use_count > 0"
        self.pools.append(pool)
        graph.number = len(self.pools) if pool is None else pool
        self._living.setdefault(graph.number, weakref.WeakSet()).add(graph)
        before, self.current = self.current, stream
        try:
            yield
        finally:
            text, self.fails_at_end = self.fails_at_end, ""
            if text:
                raise RuntimeError(text)
            self.current = before


class FakeGraph:
    number = 0

    def pool(self) -> int:
        return self.number


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name, value in {
        "Stream": fake.new_stream,
        "current_stream": lambda: fake.current,
        "set_stream": lambda stream: setattr(fake, "current", stream),
        "stream": fake.stream,
        "graph": fake.graph,
        "CUDAGraph": FakeGraph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


def answer() -> tuple[torch.Tensor]:
    return (torch.ones(2),)


def run_out() -> tuple[torch.Tensor]:
    raise torch.OutOfMemoryError(NO_MEMORY)


class SecondRunsOut:
    """Fails while it is captured: it has run once before."""

    def __init__(self) -> None:
        self._num_runs = 0

    def __call__(self) -> tuple[torch.Tensor]:
        self._num_runs += 1
        return answer() if self._num_runs == 1 else run_out()


def test_all_graphs_of_a_device_share_a_pool_and_a_stream(cuda: FakeCuda) -> None:
    capture = CudaGraphs()
    kept = [capture(answer) for _ in range(3)]
    assert cuda.pools == [None, 1, 1]
    assert cuda.num_streams == 1, "cuBLAS makes a workspace for each stream"
    assert cuda.current is cuda.home
    assert len(kept) == 3


@pytest.mark.parametrize(("compute", "at_end"), [(run_out, ""), (SecondRunsOut(), ""), (SecondRunsOut(), INVALIDATED)])
def test_after_one_without_memory_the_next_can_be_captured(
    compute: Callable[[], tuple[torch.Tensor]], at_end: str, cuda: FakeCuda
) -> None:
    """Nothing of the failed one is left, not even what a traceback holds."""
    capture = CudaGraphs()
    cuda.fails_at_end = at_end
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate") as caught:
        capture(compute)
    assert caught.value.__context__ is None
    assert cuda.current is cuda.home
    kept = capture(answer)
    assert cuda.pools[-1] is None
    assert capture(answer) is not kept
    assert cuda.pools[-1] is not None


@pytest.mark.parametrize(
    "text", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
)
def test_the_drivers_and_cublas_want_of_memory_is_told_as_torchs(text: str, cuda: FakeCuda) -> None:
    """Making a graph executable takes memory of the driver."""
    cuda.fails_at_end = text
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA error"):
        CudaGraphs()(answer)


def test_what_cannot_be_captured_says_so(cuda: FakeCuda) -> None:
    cuda.fails_at_end = "operation not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match="not permitted") as caught:
        CudaGraphs()(answer)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert cuda.current is cuda.home


def test_the_pool_of_graphs_that_are_all_gone_is_not_named_again(cuda: FakeCuda) -> None:
    capture = CudaGraphs()
    graph = capture(answer)
    del graph
    gc.collect()
    kept = capture(answer)
    assert cuda.pools == [None, None]
    assert kept.output[0].shape == (2,)
