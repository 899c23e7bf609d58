"""The same executor on a CUDA device. Not run on hardware by the people who wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minedraft.device import Device
from minedraft.errors import ConfigError
from minedraft_workers.device import pin
from minedraft_workers.execution.executor import Executor, ForwardSpan
from tests.support.tiny_models import KINDS, make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_matmuls() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("kind", KINDS)
def test_cuda_gives_the_cpus_logits(kind: str, tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, kind)
    executors = [
        Executor.load(path, device=Device.parse(device), dtype="float32", num_blocks=32) for device in ("cpu", "cuda:0")
    ]
    steps = [
        [ForwardSpan(1, 0, range(3, 40), 1), ForwardSpan(2, 0, range(50, 55), 5)],
        [ForwardSpan(2, 5, [7], 1), ForwardSpan(1, 37, [8, 9, 10], 3), ForwardSpan(3, 0, range(100, 200), 1)],
        [ForwardSpan(1, 38, [11, 12, 13], 3), ForwardSpan(3, 100, [4], 1)],
    ]
    for spans in steps:
        on_cpu, on_cuda = (executor.forward(spans) for executor in executors)
        assert on_cuda.device.type == "cuda"
        torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=1e-4, rtol=1e-4)


def test_auto_dtype_is_bfloat16_and_capacity_follows_free_memory(tmp_path: Path) -> None:
    executor = Executor.load(make_tiny_model(tmp_path), device=Device.parse("cuda:0"), num_blocks=None)
    assert executor.dtype_name == "bfloat16"
    assert executor.num_blocks > 1000
    assert torch.isfinite(executor.forward([ForwardSpan(1, 0, range(3, 40), 1)])).all()


def test_a_forward_does_not_wait_for_the_device(tmp_path: Path) -> None:
    executor = Executor.load(make_tiny_model(tmp_path), device=Device.parse("cuda:0"), num_blocks=32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        executor.forward([ForwardSpan(1, 0, range(3, 40), 1), ForwardSpan(2, 0, [5], 1)])
        executor.forward([ForwardSpan(1, 37, [8], 1), ForwardSpan(2, 1, [5], 1)])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch found"):
        pin(Device.parse("cuda:99"))
