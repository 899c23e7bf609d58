"""Features of a target and drafting heads on a CUDA device. Not run on hardware by the people who wrote it; how to run
it is in test_executor_cuda.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minedraft.device import Device
from minedraft.models.folder import check_model_folder
from minedraft.models.heads.folder import check_head_folder
from minedraft_workers.device import make_exact
from minedraft_workers.execution.eagle.head import EagleHead
from minedraft_workers.execution.eagle.loading import load_head
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.features import AFTER_FINAL_NORM
from minedraft_workers.execution.graphs.sizes import SIZES
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.execution.spans import ForwardSpan
from tests.gpu.test_executor_cuda import refusing_to_wait
from tests.support.tiny_heads import LAYOUTS, make_tiny_head
from tests.support.tiny_models import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CARD = Device.parse("cuda:0")
HEADS: dict[str, Any] = {"hidden_size": 64, "head_dim": 16}
WANTED = (1, 0, 3, AFTER_FINAL_NORM)


@pytest.fixture(autouse=True)
def exact_matmuls() -> None:
    make_exact()


@pytest.mark.parametrize("kernels", ["triton", "torch", "transformers"])
def test_the_card_gives_the_features_of_the_cpu_and_the_logits_that_it_gives_without(
    kernels: str, tmp_path: Path
) -> None:
    """By graphs too, which are captured before, and give the features of every size."""
    path = make_tiny_model(tmp_path, layers=3, **HEADS)
    executors = [
        Executor.load(path, LoadOptions(device, dtype="float32", num_blocks=64, kernels=name))
        for device, name in ((Device.parse("cpu").here(), "transformers"), (CARD, kernels))
    ]
    for executor in executors:
        executor.want_features(WANTED)
    if executors[1].graphs is not None:
        executors[1].graphs.capture()
    steps = [[ForwardSpan(1, 0, range(3, 40), 1), ForwardSpan(2, 0, range(50, 55), 1)]]
    steps += [[ForwardSpan(2, 5, [7 + k, 8], 2), ForwardSpan(1, 37, [8, 9 + k], 2)] for k in range(3)]
    for spans in steps:
        wanted, found = (executor.forward_with_features(spans) for executor in executors)
        torch.testing.assert_close(found.logits.cpu(), wanted.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.features.cpu(), wanted.features, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(executors[1].forward(spans), found.logits, atol=1e-5, rtol=1e-5)
    with refusing_to_wait():
        executors[1].forward_with_features(steps[1])


@pytest.mark.parametrize("kernels", ["triton", "torch"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_gives_on_the_card_what_it_gives_on_the_cpu(layout: str, kernels: str, tmp_path: Path) -> None:
    target = make_tiny_model(tmp_path / "target", **HEADS)
    layers = 2 if layout == "minedraft" else 1
    info = check_head_folder(
        make_tiny_head(tmp_path / "head", target, layout, layers=layers), check_model_folder(target, "target"), "draft"
    )
    on_cpu = load_head(info, LoadOptions(Device.parse("cpu").here(), dtype="float32", num_blocks=64, kernels="torch"))
    on_card = load_head(info, LoadOptions(CARD, dtype="float32", num_blocks=64, kernels=kernels))
    assert on_card.kernels == kernels
    assert (on_card.graphs is not None) is (kernels == "triton")
    if on_card.graphs is not None:
        on_card.graphs.capture()
        assert on_card.graphs.kernels == f"triton (graphs of up to {SIZES[-1]} rows)"
    given = torch.randn(45, info.feature_size, generator=torch.Generator().manual_seed(0))

    def draft(head: EagleHead) -> list[torch.Tensor]:
        spans = [ForwardSpan(1, 0, range(3, 43), 1), ForwardSpan(2, 0, range(60, 65), 1)]
        outputs = [head.forward(spans, given)]
        for k in range(2):
            spans = [ForwardSpan(1, 40 + k, [5], 1), ForwardSpan(2, 5 + k, [6], 1)]
            outputs.append(head.forward(spans, outputs[-1].states_of([0, 1]), are_states=True))
        return [output.logits for output in outputs]

    for wanted, found in zip(draft(on_cpu), draft(on_card), strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), wanted, atol=1e-3, rtol=1e-3)
    with refusing_to_wait():
        draft(on_card)
