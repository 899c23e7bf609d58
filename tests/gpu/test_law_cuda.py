"""What stays on a CUDA device: choices, verdicts and the tokens of a round. Not run on hardware by the people who wrote
it; how to run it is in test_executor_cuda.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minedraft.device import Device
from minedraft_workers.device import make_exact, pin
from minedraft_workers.sampling.acceptance import verify
from minedraft_workers.sampling.sampler import Sampler
from scripts.gpu.report import Report
from scripts.gpu.step import Step
from scripts.gpu.steps.law import Loop, check_choice
from tests.support.tiny_models import add_noise, make_tiny_model
from tests.unit.workers.cuda.test_batched_choice import Case, assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CARD = Device.parse("cuda:0")
HEADS: dict[str, Any] = {"hidden_size": 64, "head_dim": 16}


@pytest.fixture(autouse=True)
def exact_matmuls() -> None:
    pin(CARD)
    make_exact()


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step("law", "cuda:0", Report(tmp_path), 1e9)


@pytest.mark.parametrize("number", range(20))
def test_random_batches_are_decided_as_row_by_row_on_the_cpu(number: int) -> None:
    case = Case(number)
    rows, _ = case.draft(3)
    logits = case.logits(sum(len(row.drafts) + 1 for row in rows), case.vocab)
    for found, wanted in zip(Sampler().verify(logits.cuda(), rows), verify(logits, rows), strict=True):
        assert_same(found, wanted)


def test_a_large_vocabulary_is_chosen_from_as_on_the_cpu(step: Step) -> None:
    check_choice(step)
    found = step.of("law")["choice"]
    assert found["drafts_equal"] == found["drafts"]
    assert found["verdicts_equal"] == found["verdicts"]


def test_a_round_stays_on_the_device_in_captured_graphs(step: Step, tmp_path: Path) -> None:
    loop = Loop(step, add_noise(make_tiny_model(tmp_path / "draft", **HEADS), 0.05), CARD)
    loop.capture()
    loop.compare()
    found = step.of("law")
    assert found["graphs"]["captured"]
    for law in found["loop"].values():
        assert law["equal"] == law["drafts"]
        assert law["draft_waits"] == law["verify_waits"] == 1
