"""The same executor on a CUDA device. Not run on hardware by the people who wrote it.

Without this project's settings of pytest, and without its plugins, on a machine that has neither:
`pytest -c EMPTYFILE --rootdir=. -p no:cacheprovider -o pythonpath=. tests/gpu`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from minedraft.device import Device
from minedraft.errors import ConfigError
from minedraft_workers.device import make_exact, pin
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.graphs.model import GraphRunner
from minedraft_workers.execution.graphs.sizes import SIZES
from minedraft_workers.execution.options import LoadOptions
from tests.support.tiny_models import KINDS, make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CARD = Device.parse("cuda:0")
HEADS: dict[str, Any] = {"hidden_size": 64, "head_dim": 16}  # that the layers' kernels take


@pytest.fixture(autouse=True)
def exact_matmuls() -> None:
    make_exact()


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Raise an error where the host waits for the device."""

    def set_mode(mode: str) -> None:
        with warnings.catch_warnings():  # it warns that it is a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(mode)

    try:
        set_mode("error")
        yield
    finally:
        set_mode("default")


def compare_with_cpu(path: Path, kernels: str) -> Executor:
    """Assert that the card gives the logits of transformers' code on the CPU. Return what runs on the card."""
    executors = [
        Executor.load(path, LoadOptions(device, dtype="float32", num_blocks=64, kernels=name))
        for device, name in ((Device.parse("cpu").here(), "transformers"), (CARD, kernels))
    ]
    steps = [
        [ForwardSpan(1, 0, range(3, 40), 1), ForwardSpan(2, 0, range(50, 55), 5)],
        [ForwardSpan(2, 5, [7], 1), ForwardSpan(1, 37, [8, 9, 10], 3), ForwardSpan(3, 0, range(100, 200), 1)],
        [ForwardSpan(1, 38, [11, 12, 13], 3), ForwardSpan(3, 100, [4], 1)],
        [ForwardSpan(1, 39, [11, 14, 13], 3), ForwardSpan(3, 101, [5], 1)],  # of a size that is captured now
    ]
    for spans in steps:
        on_cpu, on_cuda = (executor.forward(spans) for executor in executors)
        assert on_cuda.device.type == "cuda"
        torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=1e-4, rtol=1e-4)
    return executors[1]


@pytest.mark.parametrize("kernels", ["auto", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_gives_the_cpus_logits(kind: str, kernels: str, tmp_path: Path) -> None:
    compare_with_cpu(make_tiny_model(tmp_path, kind), kernels)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("kernels", ["triton", "torch"])
def test_the_layers_kernels_give_the_cpus_logits(kind: str, kernels: str, tmp_path: Path) -> None:
    assert compare_with_cpu(make_tiny_model(tmp_path, kind, **HEADS), kernels).kernels == kernels


def test_graphs_give_what_their_kernels_give_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tiny_model(tmp_path, **HEADS)

    def load() -> Executor:
        return Executor.load(path, LoadOptions(CARD, dtype="float32", num_blocks=64, kernels="triton"))

    by_graphs = load()
    assert by_graphs.graphs is not None
    by_graphs.graphs.capture()
    assert by_graphs.graphs.kernels == f"triton (graphs of up to {SIZES[-1]} rows)"
    monkeypatch.setattr("minedraft_workers.execution.executor.with_few_calls", lambda decoder, *rest: decoder)
    without = load()
    for num_requests in (1, 2, 3, 7, 16, 17):
        owners = range(num_requests)
        steps = [[ForwardSpan(i, 0, range(3 + i, 8 + i), 1) for i in owners]]
        steps += [[ForwardSpan(i, 5, [9 + i + k, 8], 2) for i in owners] for k in range(3)]
        steps += [[ForwardSpan(i, 7, [11 + i], 1) for i in owners]]
        for spans in steps:
            torch.testing.assert_close(by_graphs.forward(spans), without.forward(spans), rtol=1e-5, atol=1e-5)
        by_graphs.release_all()
        without.release_all()
    assert isinstance(by_graphs.graphs, GraphRunner)
    assert len(by_graphs.graphs._graphs._graphs) == len(SIZES)


def test_auto_dtype_is_bfloat16_and_capacity_follows_the_share(tmp_path: Path) -> None:
    share = 0.01  # enough for a tiny model, and little of a card that others may use
    executor = Executor.load(make_tiny_model(tmp_path), LoadOptions(CARD, num_blocks=None, memory_share=share))
    assert executor.dtype_name == "bfloat16"
    assert executor.num_blocks > 1000
    assert torch.cuda.memory_reserved() <= 1.1 * share * torch.cuda.mem_get_info()[1]
    assert torch.isfinite(executor.forward([ForwardSpan(1, 0, range(3, 40), 1)])).all()


def test_a_cache_is_no_larger_than_its_requests_can_use(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, max_position_embeddings=64)
    executor = Executor.load(path, LoadOptions(CARD, block_size=16, max_requests=6))
    assert executor.num_blocks == 6 * 4


@pytest.mark.parametrize("kernels", ["triton", "torch", "transformers"])
def test_a_forward_does_not_wait_for_the_device(kernels: str, tmp_path: Path) -> None:
    options = LoadOptions(CARD, num_blocks=32, kernels=kernels)
    executor = Executor.load(make_tiny_model(tmp_path, **HEADS), options)

    def run() -> None:
        executor.forward([ForwardSpan(1, 0, range(3, 40), 1), ForwardSpan(2, 0, [5], 1)])
        executor.forward([ForwardSpan(1, 37, [8], 1), ForwardSpan(2, 1, [5], 1)])

    if executor.graphs is not None:
        executor.graphs.capture()
    run()  # programs are compiled, which waits
    with refusing_to_wait():
        run()


def test_a_share_that_has_no_room_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory_share is 1e-09: the model takes"):
        Executor.load(make_tiny_model(tmp_path), LoadOptions(CARD, memory_share=1e-9))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch found"):
        pin(Device.parse("cuda:99"))
