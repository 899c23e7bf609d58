"""Rounds of drafting with a head: the drafts of a plain reading of its layout, from the target's real features."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from minedraft.device import Device
from minedraft.errors import ProtocolError
from minedraft.models.folder import check_model_folder
from minedraft.models.heads.folder import check_head_folder
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.execution.eagle.loading import load_head
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.eagle import EagleProposer
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sequence import SequenceState
from tests.support.tiny_heads import LAYOUTS, make_tiny_head
from tests.support.tiny_models import make_tiny_model
from tests.unit.workers.eagle.reference import ReferenceHead

CPU = Device.parse("cpu").here()


@dataclass
class Pair:
    """A target that gives features, and a proposer with a head for it."""

    target: Path
    head: Path
    max_model_len: int | None = None
    num_blocks: int = 64
    as_on_gpu: bool = False
    executor: Executor = field(init=False)
    proposer: EagleProposer = field(init=False)
    reference: ReferenceHead = field(init=False)

    def __post_init__(self) -> None:
        options = LoadOptions(CPU, dtype="float32", num_blocks=64, kernels="torch")
        self.executor = Executor.load(self.target, options)
        info = check_head_folder(self.head, check_model_folder(self.target, "target"), "draft")
        sizes = {"num_blocks": self.num_blocks, "block_size": 4, "max_model_len": self.max_model_len}
        head = load_head(info, replace(options, **sizes))
        sampler = Sampler(is_batched=True) if self.as_on_gpu else None
        self.proposer = EagleProposer(head, sampler, loops_on_device=self.as_on_gpu)
        self.reference = ReferenceHead(self.head, self.target)
        self.executor.want_features(self.proposer.feature_layers)

    def features(self, tokens: list[int]) -> torch.Tensor:
        """Return the target's features of all tokens."""
        features = self.executor.forward_with_features([ForwardSpan(0, 0, tokens, 0)]).features
        assert features.shape == (len(tokens), self.proposer.feature_size)
        return features

    def row(self, state: SequenceState, tokens: list[int], prefix_len: int, draft_len: int) -> DraftRow:
        """Return the row that brings the proposer from `prefix_len` to all of these committed tokens."""
        features = self.features(tokens)[max(prefix_len - 1, 0) : len(tokens) - 1]
        return DraftRow(state, prefix_len, tokens[prefix_len:], draft_len, features=features)


@pytest.fixture(params=[False, True], ids=["", "as-on-gpu"])
def as_on_gpu(request: pytest.FixtureRequest) -> bool:
    """Whether the tokens of a round stay on the device."""
    return request.param


@pytest.fixture(params=LAYOUTS)
def pair(request: pytest.FixtureRequest, as_on_gpu: bool, tmp_path: Path) -> Pair:
    target = make_tiny_model(tmp_path / "target")
    layers = 2 if request.param == "minedraft" else 1
    head = make_tiny_head(tmp_path / "head", target, request.param, layers=layers)
    return Pair(target, head, as_on_gpu=as_on_gpu)


@pytest.fixture
def eagle3(as_on_gpu: bool, tmp_path: Path) -> Pair:
    target = make_tiny_model(tmp_path / "target")
    head = make_tiny_head(tmp_path / "head", target)
    return Pair(target, head, max_model_len=20, num_blocks=12, as_on_gpu=as_on_gpu)


def make_state(request_id: int, kind: Acceptance = Acceptance.GREEDY, seed: int = 5) -> SequenceState:
    params = SamplingParams(temperature=0.0 if kind is Acceptance.GREEDY else 1.0)
    return SequenceState(request_id, SequenceSpec(params, 1, seed, kind))


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, 320), k=length)


def test_rounds_of_several_requests_give_the_drafts_of_the_reference(pair: Pair) -> None:
    """Prompts in chunks, some drafts accepted, each request with its own number of drafts, some of them without."""
    rng = random.Random(1)
    tokens = {i: text(length, i) for i, length in enumerate((11, 2, 7, 1))}
    states, held = {i: make_state(i) for i in tokens}, dict.fromkeys(tokens, 0)
    pair.proposer.propose([pair.row(states[0], tokens[0][:6], 0, 0)])
    held[0] = 6
    for number in range(6):
        rows = {
            i: pair.row(states[i], tokens[i], held[i], rng.randint(0 if number else 1, 4))
            for i in rng.sample(sorted(tokens), 3)
        }
        assert pair.proposer.propose(list(rows.values())) > 0
        for i, row in rows.items():
            assert states[i].tokens == tokens[i]
            wanted = min(row.draft_len, 4)
            assert row.drafts == pair.reference.propose(tokens[i], pair.features(tokens[i])[:-1], wanted)
            assert len(row.drafts) == (wanted if len(tokens[i]) > 1 else 0)
            held[i] = len(tokens[i])
            accepted = row.drafts[: rng.randint(0, len(row.drafts))]
            tokens[i] = [*tokens[i], *accepted, rng.randrange(3, 320)]


def test_sampled_drafts_come_from_the_heads_own_vocabulary_and_say_what_they_were_drawn_from(eagle3: Pair) -> None:
    """Under REJECTION and COUPLED, alone as in a crowd."""
    ids = set(eagle3.reference.ids.tolist())
    kinds = (Acceptance.REJECTION, Acceptance.COUPLED, Acceptance.GREEDY)

    def rows() -> list[DraftRow]:
        return [eagle3.row(make_state(i, kind), text(9, i), 0, 3) for i, kind in enumerate(kinds)]

    together = rows()
    eagle3.proposer.propose(together)
    assert [len(row.drafts) for row in together] == [3, 3, 3]
    assert all(ids.issuperset(row.drafts) for row in together)
    assert [len(row.q_ids) for row in together] == [3, 0, 0]
    for token, q_ids, q_probs in zip(together[0].drafts, together[0].q_ids, together[0].q_probs, strict=True):
        assert token in q_ids.tolist()
        assert ids.issuperset(q_ids[q_ids >= 0].tolist())
        assert q_probs.sum() == pytest.approx(1.0, abs=1e-5)
    for index in range(3):
        eagle3.proposer.release(index)
        alone = rows()[index]
        eagle3.proposer.propose([alone])
        assert alone.drafts == together[index].drafts


def test_ids_that_the_target_has_no_row_for_are_never_proposed(eagle3: Pair) -> None:
    limit = 100
    eagle3.proposer.reset(limit)
    rows = [eagle3.row(make_state(i, Acceptance.COUPLED, seed=i), text(5, i), 0, 4) for i in range(4)]
    eagle3.proposer.propose(rows)
    assert all(token < limit for row in rows for token in row.drafts)
    eagle3.proposer.reset(0)
    rows = [eagle3.row(make_state(i, Acceptance.COUPLED, seed=i), text(5, i), 0, 4) for i in range(4)]
    eagle3.proposer.propose(rows)
    assert any(token >= limit for row in rows for token in row.drafts)


def test_drafting_ends_with_the_heads_context(eagle3: Pair) -> None:
    """20 positions: 19 tokens fill 18 of them, which leaves two beside the last for drafts; 21 tokens fill all."""
    state = make_state(1)
    for length, wanted in ((12, 4), (19, 3), (20, 2), (21, 1)):
        row = eagle3.row(state, text(21)[:length], len(state.tokens), 4)
        eagle3.proposer.propose([row])
        assert len(row.drafts) == wanted
        assert row.drafts == eagle3.reference.propose(
            text(21)[:length], eagle3.features(text(21)[:length])[:-1], wanted
        )


def test_a_feature_that_is_not_finite_ends_its_own_row_alone(eagle3: Pair) -> None:
    clean = [eagle3.row(make_state(i), text(6, i), 0, 3) for i in range(3)]
    eagle3.proposer.propose(clean)
    eagle3.proposer.reset(0)
    dirty = [eagle3.row(make_state(i), text(6, i), 0, 3) for i in range(3)]
    assert dirty[1].features is not None
    dirty[1].features = dirty[1].features.clone()
    dirty[1].features[-1, 7] = torch.nan
    eagle3.proposer.propose(dirty)
    assert [row.drafts for row in dirty] == [clean[0].drafts, [], clean[2].drafts]


def test_when_the_blocks_run_out_in_a_round_the_drafts_so_far_count(eagle3: Pair) -> None:
    """12 blocks of 4: three requests of 17 tokens take 4 each, and have no place for a second draft's position."""
    rows = [eagle3.row(make_state(i), text(17, i), 0, 4) for i in range(3)]
    eagle3.proposer.propose(rows)
    assert [len(row.drafts) for row in rows] == [1, 1, 1]
    assert eagle3.proposer.num_free_blocks == 0
    eagle3.proposer.release(1)
    assert eagle3.proposer.num_free_blocks == 4


@pytest.mark.parametrize("features", [None, torch.zeros(4, 96), torch.zeros(5, 95)])
def test_features_of_another_shape_are_refused_and_change_nothing(eagle3: Pair, features: torch.Tensor | None) -> None:
    row = DraftRow(make_state(1), 0, text(6), 2, features=features)
    with pytest.raises(ProtocolError, match=r"request 1 has features .* for 6 tokens after 0, must be \[5, 96\]"):
        eagle3.proposer.propose([row])
    assert row.state.tokens == []
    assert eagle3.proposer.num_free_blocks == 12
