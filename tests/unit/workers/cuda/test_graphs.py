"""Which forwards are captured when, and what happens where that is impossible. The graphs here are fakes: no GPU has
run this."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minedraft.device import Device, usable_cores
from minedraft.errors import MemoryExhausted
from minedraft.types import Role
from minedraft_workers.composition import prepare_actor
from minedraft_workers.rounds.runtime import WorkerRuntime
from tests.support.in_process import InProcessDrafter, InProcessVerifier
from tests.support.tiny_models import make_tiny_model

pytest.importorskip("triton")

from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.graphs.capture import Computed
from minedraft_workers.execution.graphs.sizes import SIZES
from minedraft_workers.execution.options import LoadOptions
from tests.fakes.graphs import RepeatedGraph, run_by_graphs

TORCH_SAYS = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.18 GiB of which ..."
SPANS = [ForwardSpan(1, 0, range(3, 9), 2), ForwardSpan(2, 0, [7], 1)]  # seven rows


class Capturing:
    """Captures up to so many rows; a larger computation raises an error."""

    def __init__(self, most: int = SIZES[-1], error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        self.most = most
        self.error = error
        self.num_made = 0

    def __call__(self, compute: Callable[[], Computed]) -> RepeatedGraph:
        # The sizes come one after the other, the largest first.
        rows = tuple(reversed(SIZES))[self.num_made] if self.num_made < len(SIZES) else 0
        self.num_made += 1
        if rows > self.most:
            raise self.error(TORCH_SAYS)
        return RepeatedGraph(compute)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=32, head_dim=16)


def load(folder: Path) -> Executor:
    device = Device("cpu", usable_cores()[:1])
    options = LoadOptions(device, dtype="float32", num_blocks=64, block_size=4, kernels="triton")
    return Executor.load(folder, options)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Executor, Executor]:
    """Two executors of the same model, loaded once: the interpreter is slow."""
    return load(folder), load(folder)


def emptied(executor: Executor) -> Executor:
    executor.release_all()
    executor.want_features(())
    return executor


@pytest.fixture
def plain(loaded: tuple[Executor, Executor]) -> Executor:
    """What runs without graphs."""
    return emptied(loaded[0])


@pytest.fixture
def executor(loaded: tuple[Executor, Executor]) -> Executor:
    """What a test gives graphs."""
    return emptied(loaded[1])


@pytest.fixture(scope="module")
def wanted(loaded: tuple[Executor, Executor]) -> torch.Tensor:
    """The logits of SPANS."""
    return emptied(loaded[0]).forward(SPANS)


def captured(executor: Executor, capturing: Capturing, say: Callable[[str], object] = lambda text: None) -> str:
    """Capture the graphs of an executor. Return what it says that it runs on."""
    run_by_graphs(executor, capturing)
    assert executor.graphs is not None
    executor.graphs.capture(say)
    return executor.graphs.kernels


def test_every_size_is_captured_at_load_and_none_later(
    executor: Executor, wanted: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    capturing, said = Capturing(), list[str]()
    with caplog.at_level(logging.INFO, "minedraft.worker"):
        assert captured(executor, capturing, said.append) == "triton (graphs of up to 640 rows)"
    assert capturing.num_made == len(SIZES)
    assert [line.partition(" in ")[0] for line in said[:2]] == [
        f"captured {i} of 18 sizes of CUDA graphs" for i in range(2)
    ]
    first, last = caplog.messages
    assert first == "capturing 18 CUDA graphs, of 1 to 640 rows"
    assert last.startswith("captured 18 of 18 sizes of CUDA graphs in ")
    torch.testing.assert_close(executor.forward(SPANS), wanted)
    assert capturing.num_made == len(SIZES)


@pytest.mark.parametrize("most", [4, 8])
def test_a_size_without_memory_and_the_larger_ones_run_without(
    most: int, executor: Executor, wanted: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    missing = ", ".join(str(size) for size in SIZES if size > most)
    kernels = captured(executor, Capturing(most))
    assert kernels == f"triton (graphs of up to {most} rows, no memory for {missing})"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"no memory for CUDA graphs of {missing} rows, which run without: "
        "CUDA out of memory. Tried to allocate 20.00 MiB; a lower memory_share leaves more"
    ]
    replayed = 0
    for captured_graph in executor.graphs._graphs._graphs.values():

        def count(replay: Callable[[], None] = captured_graph.graph.replay) -> None:
            nonlocal replayed
            replayed += 1
            replay()

        captured_graph.graph.replay = count
    torch.testing.assert_close(executor.forward(SPANS), wanted)
    assert replayed == (1 if most >= 7 else 0)
    executor.forward([ForwardSpan(2, 1, [5], 1)])
    assert replayed == (2 if most >= 7 else 1), "what fits runs by its graph"


def test_ids_that_are_on_the_device_only_go_into_a_graph_too(executor: Executor, plain: Executor) -> None:
    """The rows of a forward are not in the order of its spans: the longest table comes first."""
    captured(executor, Capturing())
    for each in (plain, executor):
        each.forward(SPANS)
    wanted = plain.forward([ForwardSpan(2, 1, [5], 1), ForwardSpan(1, 6, [9], 1)])
    spans = [ForwardSpan(2, 1, [0], 1), ForwardSpan(1, 6, [0], 1)]
    torch.testing.assert_close(executor.forward(spans, torch.tensor([5, 9])), wanted)
    torch.testing.assert_close(plain.forward(spans, torch.tensor([5, 9])), wanted)


def test_no_memory_for_any_is_told_by_the_setting(executor: Executor) -> None:
    with pytest.raises(MemoryExhausted, match=r"no memory for a CUDA graph of 1 rows: CUDA out of memory\. Tried to"):
        captured(executor, Capturing(most=0))


def test_a_model_that_cannot_be_captured_runs_without(
    executor: Executor, wanted: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    capturing = Capturing(most=0, error=RuntimeError)
    assert captured(executor, capturing) == "triton (no graphs: this model cannot be captured)"
    assert capturing.num_made == 1
    assert "this model runs without CUDA graphs" in caplog.text
    torch.testing.assert_close(executor.forward(SPANS), wanted)


def test_features_that_are_wanted_before_come_by_the_graphs_of_all_forwards(
    executor: Executor, plain: Executor
) -> None:
    for each in (plain, executor):
        each.want_features((1, 0))
    capturing = Capturing()
    run_by_graphs(executor, capturing)
    executor.want_features((1, 0))
    executor.graphs.capture()
    for _ in range(2):
        assert_same_features(executor, plain)
    assert capturing.num_made == len(SIZES), "one graph of each size, and none later"


@pytest.mark.parametrize("wanted_at_load", [(), (1,)])
def test_features_that_are_wanted_later_come_by_graphs_of_their_own_or_without_where_there_is_no_memory(
    wanted_at_load: tuple[int, ...], executor: Executor, plain: Executor
) -> None:
    capturing = Capturing()
    run_by_graphs(executor, capturing)
    executor.want_features(wanted_at_load)
    executor.graphs.capture()
    for each in (plain, executor):
        each.want_features((1, 0))
    for most in (SIZES[-1], -1):
        capturing.most = most  # of those after the last, which count as none
        executor.want_features((1,))
        executor.want_features((1, 0))
        assert_same_features(executor, plain)
    assert capturing.num_made == len(SIZES) + 2


def assert_same_features(executor: Executor, plain: Executor) -> None:
    """Compare logits and features of SPANS, and then the logits of a forward without features."""
    for each in (plain, executor):
        each.release_all()
    found, expected = executor.forward_with_features(SPANS), plain.forward_with_features(SPANS)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.features, expected.features)
    spans = [ForwardSpan(1, 6, range(20, 27), 2)]
    torch.testing.assert_close(executor.forward(spans), plain.forward(spans))


@pytest.mark.parametrize("role", Role)
async def test_a_worker_captures_in_its_device_thread_and_says_so_in_its_handshake(
    role: Role, executor: Executor
) -> None:
    verifier = InProcessVerifier(executor)
    actor = verifier.actor if role is Role.VERIFIER else InProcessDrafter(executor, verifier).actor
    run_by_graphs(executor, Capturing(most=16))
    runtime = WorkerRuntime(actor)
    await runtime.prepare(lambda: prepare_actor(Device("cpu"), actor))
    assert runtime.sessions[0].start_epoch().kernels.startswith("triton (graphs of up to 16 rows, no memory for 24, ")
    assert runtime.stop(5)


async def test_a_worker_without_memory_for_one_graph_does_not_start(executor: Executor) -> None:
    verifier = InProcessVerifier(executor)
    run_by_graphs(executor, Capturing(most=0))
    runtime = WorkerRuntime(verifier.actor)
    with pytest.raises(MemoryExhausted):
        await runtime.prepare(lambda: prepare_actor(Device("cpu"), verifier.actor))
    assert runtime.stop(5)
