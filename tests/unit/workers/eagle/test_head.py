"""Drafting heads against a plain reading of their layouts; natively the same bits in every batch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from minedraft.core.blocks import BlocksExhausted
from minedraft.device import Device
from minedraft.errors import ConfigError, ProtocolError
from minedraft.models.folder import check_model_folder
from minedraft.models.heads.folder import check_head_folder
from minedraft_workers.execution.eagle.head import EagleHead
from minedraft_workers.execution.eagle.loading import foresee_head, load_head
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.execution.programs import MAX_ROWS
from minedraft_workers.execution.spans import ForwardSpan
from tests.support.native import needs_native
from tests.support.tiny_heads import make_tiny_head
from tests.support.tiny_models import make_tiny_model
from tests.unit.workers.eagle.reference import ReferenceHead

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
HEADS: dict[str, dict[str, Any]] = {
    "eagle": {"layout": "eagle1"},
    "eagle-biases": {"layout": "eagle1", "biases": True},
    "eagle-3": {"layout": "eagle3"},
    "eagle-3-biases": {"layout": "eagle3", "biases": True, "own_embedding": True},
    "deep": {"layout": "minedraft", "layers": 3, "feature_layers": (2,)},
    "wide": {"layout": "minedraft", "layers": 2, "hidden_size": 96, "feature_layers": (0, 1, 2, -1)},
    "targets-rows": {"layout": "minedraft", "own_output": False, "draft_vocab_size": 150},
}


@dataclass(frozen=True)
class Case:
    target: Path
    folder: Path

    def load(self, **options: object) -> EagleHead:
        info = check_head_folder(self.folder, check_model_folder(self.target, "target"), "draft")
        settings: dict[str, object] = {"device": Device.parse("cpu").here(), "dtype": "float32", "num_blocks": 384}
        settings |= {"block_size": 4, "kernels": "native"} | options
        return load_head(info, LoadOptions(**settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target"), **SIZES)


@pytest.fixture(params=HEADS)
def case(request: pytest.FixtureRequest, target: Path, tmp_path: Path) -> Case:
    return Case(target, make_tiny_head(tmp_path / "head", target, **HEADS[request.param]))


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, 320), k=length)


def features(head: EagleHead, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, head.feature_size, generator=torch.Generator().manual_seed(seed))


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    """Of a head without norms some numbers are large, and the attention to them is sharp."""
    error = (got - want).norm(dim=-1) / want.norm(dim=-1)
    assert float(error.max()) < 1e-3, error


@needs_native
@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_its_logits_and_states_are_those_of_its_layout(case: Case, kernels: str) -> None:
    """Chunks longer and shorter than a program, in another order than they are packed in; then its own states."""
    head, reference = case.load(kernels=kernels), ReferenceHead(case.folder, case.target)
    assert head.kernels.startswith(kernels)
    texts, given = (
        {1: text(MAX_ROWS + 19), 2: text(12, 1)},
        {1: features(head, MAX_ROWS + 17), 2: features(head, 10, 1)},
    )
    wanted = {i: reference.run(texts[i], given[i], num_own=2) for i in texts}
    head.forward([ForwardSpan(1, 0, texts[1][: MAX_ROWS + 9], 0)], given[1][: MAX_ROWS + 9])
    spans = [ForwardSpan(1, MAX_ROWS + 9, texts[1][MAX_ROWS + 9 : -2], 8), ForwardSpan(2, 0, texts[2][:-2], 1)]
    output = head.forward(spans, torch.cat([given[1][MAX_ROWS + 9 :], given[2]]))
    logits, states = (torch.cat([wanted[1][side][-10:-2], wanted[2][side][-3:-2]]).float() for side in (0, 1))
    assert_near(output.logits, logits)
    assert_near(output.states, states)
    last = output.states[[8, 7]]
    for own in (2, 1):
        spans = [ForwardSpan(i, len(texts[i]) - own, texts[i][len(texts[i]) - own :][:1], 1) for i in (2, 1)]
        output = head.forward(spans, last, are_states=True)
        last = output.states
        logits = torch.stack([wanted[i][0][-own] for i in (2, 1)]).float()
        assert_near(output.logits, logits)


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_natively_a_rows_bits_depend_on_its_own_request_alone(case: Case, dtype: str) -> None:
    """Whole or in chunks, by a program or call by call, alone or in a crowd, with rolled back positions."""
    head = case.load(dtype=dtype)
    assert head.is_batch_invariant
    length, rng = MAX_ROWS + 9, random.Random(5)
    texts, given = {i: text(length, i) for i in range(4)}, {i: features(head, length, i) for i in range(4)}
    alone = {i: head.forward([ForwardSpan(i, 0, texts[i], length)], given[i]) for i in texts}
    head.release_all()
    ends = dict.fromkeys(texts, 0)
    while any(end < length for end in ends.values()):
        spans, rows = [], []
        for i in rng.sample(sorted(ends), 3):
            start = max(ends[i] - rng.choice([0, 0, 2]), 0)
            ids = texts[i][start : start + rng.choice([1, 5, 30])]
            if ids:
                spans.append(ForwardSpan(i, start, ids, len(ids)))
                rows.append(given[i][start : start + len(ids)])
        if not spans:
            continue
        output = head.forward(spans, torch.cat(rows))
        sizes = [len(span.tokens) for span in spans]
        for span, logits, states in zip(spans, output.logits.split(sizes), output.states.split(sizes), strict=True):
            part = slice(span.prefix_len, span.prefix_len + len(span.tokens))
            assert torch.equal(logits, alone[span.request_id].logits[part])
            assert torch.equal(states, alone[span.request_id].states[part])
            ends[span.request_id] = part.stop
    own = torch.cat([alone[i].states[:1] for i in texts])
    spans = [ForwardSpan(i, 1, texts[i][:1], 1) for i in texts]
    together = head.forward(spans, own, are_states=True)
    for i in texts:
        again = head.forward(spans[i : i + 1], own[i : i + 1], are_states=True)
        assert torch.equal(again.logits[0], together.logits[i])
        assert torch.equal(again.states[0], together.states[i])


@needs_native
def test_it_says_what_it_is_and_holds_its_blocks(target: Path, tmp_path: Path) -> None:
    case = Case(target, make_tiny_head(tmp_path / "head", target, "minedraft", layers=2, draft_vocab_size=100))
    head = case.load(num_blocks=4)
    assert (head.model_name, head.dtype_name, head.vocab_size, head.num_columns) == ("head", "float32", 320, 100)
    assert (head.feature_layers, head.feature_size, head.max_model_len) == ((0, 1, 2), 192, 16)
    assert head.draft_vocab_ids is not None
    assert torch.equal(head.draft_vocab_ids, ReferenceHead(case.folder, target).ids)
    said = foresee_head(
        check_head_folder(case.folder, check_model_folder(target, "target"), "draft"),
        dtype="float32", kernels="auto", device=Device("cpu", (0,)),
    )  # fmt: skip
    assert said.startswith("EAGLE-3 head, 2 layers, features of 0, 1, 2, drafts from 100 of 320 tokens, 0 MB; native")
    output = head.forward([], torch.empty(0, 192))
    assert (output.logits.shape, output.states.shape) == ((0, 100), (0, 64))
    head.forward([ForwardSpan(1, 0, text(9), 0)], features(head, 9))
    assert (head.cached_len(1), head.num_free_blocks) == (9, 1)
    with pytest.raises(BlocksExhausted):
        head.forward([ForwardSpan(2, 0, text(5), 0)], features(head, 5))
    with pytest.raises(ProtocolError, match=r"the features are \[2, 192\], must be \[1, 192\]"):
        head.forward([ForwardSpan(1, 9, text(1), 0)], features(head, 2))
    with pytest.raises(ProtocolError, match="keeps 10 tokens, 9 are cached"):
        head.forward([ForwardSpan(1, 10, text(1), 0)], features(head, 1))
    head.release(1)
    assert head.num_free_blocks == 4


def test_heads_that_the_native_kernels_do_not_take_run_on_torchs_operators(tmp_path: Path) -> None:
    target = make_tiny_model(tmp_path / "target")
    case = Case(target, make_tiny_head(tmp_path / "head", target))
    assert case.load(kernels="auto").kernels == "torch"
    asked = case.load(kernels="transformers")
    assert (asked.kernels, asked.kernels_reason) == ("torch", "transformers has no code of its own for a head")
    if not needs_native.args[0]:
        with pytest.raises(ConfigError, match="kernels is 'native': do not fit this head: heads of 8"):
            case.load(kernels="native")
