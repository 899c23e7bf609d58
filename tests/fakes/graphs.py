"""Graphs that compute again instead of replaying: what is around them, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable

from minedraft_workers.execution.eagle.graphs import HeadGraphs
from minedraft_workers.execution.eagle.head import EagleHead
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.graphs.capture import Capture, Computed
from minedraft_workers.execution.graphs.model import GraphRunner


class RepeatedGraph:
    """Computes at each replay, into the memory of the first one."""

    def __init__(self, compute: Callable[[], Computed]) -> None:
        self._compute = compute
        self.output: Computed = ()

    def replay(self) -> None:
        now = self._compute()
        if not self.output:
            self.output = now
        for kept, new in zip(self.output, now, strict=True):
            kept.copy_(new)


def run_by_graphs(executor: Executor, capture: Capture = RepeatedGraph) -> None:
    """Have an executor on Triton's kernels run by such graphs, which are not captured yet."""
    decoder = getattr(executor._runner, "_decoder", executor._runner)  # on a GPU it has graphs already
    executor._runner = GraphRunner(decoder, executor.max_model_len, capture)


def run_head_by_graphs(head: EagleHead, capture: Capture = RepeatedGraph) -> None:
    """Have a head on Triton's kernels run by such graphs, which are not captured yet."""
    head.graphs = HeadGraphs(head._decoder, head.feature_size, head.max_model_len, capture)
