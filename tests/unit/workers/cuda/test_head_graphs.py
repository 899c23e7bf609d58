"""Drafting heads by graphs, which here compute again instead of replaying: no GPU has run this."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from minedraft.device import Device
from minedraft.models.folder import check_model_folder
from minedraft.models.heads.folder import check_head_folder
from minedraft_workers.execution.eagle.head import EagleHead
from minedraft_workers.execution.eagle.loading import load_head
from minedraft_workers.execution.spans import ForwardSpan
from tests.support.tiny_heads import LAYOUTS, make_tiny_head
from tests.support.tiny_models import make_tiny_model

pytest.importorskip("triton")

from minedraft_workers.execution.graphs.sizes import SIZES
from minedraft_workers.execution.options import LoadOptions
from tests.fakes.graphs import RepeatedGraph, run_head_by_graphs

HEADS: dict[str, Any] = {"hidden_size": 32, "head_dim": 16}
# By layout: whether it makes the same of its own states as of features, so that one graph of a size does for both.
TAKES_ALIKE = {"eagle1": True, "eagle3": False, "minedraft": False}


def make_loaders(folder: Path, layout: str) -> tuple[EagleHead, EagleHead]:
    target = make_tiny_model(folder / "target", **HEADS)
    path = make_tiny_head(folder / "head", target, layout, layers=2 if layout == "minedraft" else 1)
    info = check_head_folder(path, check_model_folder(target, "target"), "draft")
    device = Device.parse("cpu").here()
    options = LoadOptions(device, dtype="float32", num_blocks=64, block_size=4, kernels="triton")
    return load_head(info, options), load_head(info, options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_gives_by_graphs_what_it_gives_without(layout: str, tmp_path: Path) -> None:
    """Rounds of drafting: features first, then its own states, whose tokens only the device knows; requests of several
    lengths, packed in another order than they are given in."""
    plain, by_graphs = make_loaders(tmp_path, layout)
    captured: list[RepeatedGraph] = []
    replays = 0

    class Counted(RepeatedGraph):
        def replay(self) -> None:
            nonlocal replays
            replays += 1
            super().replay()

    def capture(compute: Any) -> RepeatedGraph:
        captured.append(Counted(compute))
        return captured[-1]

    run_head_by_graphs(by_graphs, capture)
    assert by_graphs.graphs is not None
    by_graphs.graphs.capture()
    num_kinds = 1 if TAKES_ALIKE[layout] else 2
    assert len(captured) == num_kinds * len(SIZES)
    assert by_graphs.graphs.kernels == "triton (graphs of up to 640 rows)"
    rng, generator = random.Random(1), torch.Generator().manual_seed(0)
    lengths = dict.fromkeys((1, 2, 3), 0)
    for _ in range(2):
        new = {owner: rng.choice([1, 2, 9]) for owner in lengths}
        spans = [ForwardSpan(i, lengths[i], rng.choices(range(3, 300), k=new[i]), 1) for i in new]
        given = torch.randn(sum(new.values()), plain.feature_size, generator=generator)
        outputs = [head.forward(spans, given) for head in (plain, by_graphs)]
        owners = [2, 0, 1][: rng.choice([2, 3])]  # places among those of the step before
        for step in range(2):
            torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(outputs[1].states, outputs[0].states, rtol=1e-4, atol=1e-4)
            order = owners if step == 0 else list(range(len(owners)))
            spans = [ForwardSpan(owner + 1, lengths[owner + 1] + new[owner + 1] + step, (0,), 1) for owner in owners]
            ids = torch.tensor([7 + step + i for i in order])
            outputs = [
                head.forward(spans, out.states[order], are_states=True, ids=ids)
                for head, out in zip((plain, by_graphs), outputs, strict=True)
            ]
        lengths = {i: lengths[i] + new[i] for i in new}
    assert replays == 6
    assert len(captured) == num_kinds * len(SIZES), "none is captured later"
