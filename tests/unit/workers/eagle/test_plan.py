"""The plan of a drafter with a head: whose context, tokenizer and features it has, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minedraft.errors import ConfigError, ModelError
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.settings.loading import load_worker_settings
from minedraft.types import DraftMethod
from minedraft_workers.composition import Plan
from minedraft_workers.native import pooled
from minedraft_workers.verifier import VerifierActor
from tests.support.in_process import load_actor
from tests.support.native import needs_native
from tests.support.tiny_heads import make_tiny_head
from tests.support.tiny_models import make_tiny_model


def make_plan(role: str, model: Path, **flags: object) -> Plan:
    settings = {"role": role, "model": model, "listen": "unix:/w.sock", "num_blocks": 32, "dtype": "float32"}
    return Plan.make(load_worker_settings(settings | flags))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target") / "t", layers=3)


@pytest.fixture(scope="module")
def head(target: Path) -> Path:
    return make_tiny_head(target.parent / "h", target, max_position_embeddings=100, feature_layers=(3, -1))


@pytest.mark.parametrize("method", [None, "eagle"])
def test_a_drafter_with_a_head_says_what_the_scheduler_must_know(method: str | None, target: Path, head: Path) -> None:
    plan = make_plan("drafter", head, target=target, draft_method=method)
    assert plan.draft_method is DraftMethod.EAGLE
    said = plan.check_model()
    assert said.startswith(
        "EAGLE-3 head, 1 layer, features of 3, the final norm, drafts from 200 of 320 tokens, 0 MB; "
    )
    assert said.endswith("the batch it is in")
    info = load_actor(plan).info
    assert (info.draft_method, info.model_name, info.vocab_size) == (DraftMethod.EAGLE, "h", 320)
    assert (info.feature_layers, info.feature_size, info.max_model_len) == ((3, -1), 64, 100)
    assert info.vocab_fingerprint == vocab_fingerprint(target)
    assert (info.num_blocks, info.dtype, info.weights_bytes > 0) == (32, "float32", True)


def test_a_target_says_which_features_it_can_give(target: Path) -> None:
    info = load_actor(make_plan("verifier", target)).info
    assert (set(info.feature_layers), info.feature_size) == ({-1, 0, 1, 2, 3}, 32)
    info = load_actor(make_plan("drafter", target)).info
    assert (info.draft_method, info.feature_layers, info.feature_size) == (DraftMethod.MODEL, (), 0)


def test_a_target_that_is_told_of_the_head_gives_its_features_from_the_first_command_on(
    target: Path, head: Path
) -> None:
    actor = load_actor(make_plan("verifier", target, head=head))
    assert isinstance(actor, VerifierActor)
    assert actor._executor.feature_layers.layers == (3, -1)
    assert set(actor.info.feature_layers) == {-1, 0, 1, 2, 3}
    with pytest.raises(ConfigError, match=r"head is .*: only a verifier gives features to one"):
        make_plan("drafter", head, target=target, head=head)


@needs_native
@pytest.mark.parametrize("kind", ["verifier", "drafter", "head"])
def test_a_model_and_its_sampler_have_one_pool_of_threads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_tiny_model(tmp_path / "t", layers=3, hidden_size=128, head_dim=32, intermediate_size=256)
    head = make_tiny_head(tmp_path / "h", target, feature_layers=(3, -1))
    made = []

    class Counted(pooled.KernelPool):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(pooled, "KernelPool", Counted)
    plan = make_plan("drafter", head, target=target) if kind == "head" else make_plan(kind, target)
    actor = load_actor(plan)
    assert len(made) == 1
    assert actor.info.kernels.startswith("native")


def test_a_head_needs_its_target_and_nothing_else_takes_one(target: Path, head: Path) -> None:
    with pytest.raises(ConfigError, match="target: required with draft_method eagle: the target's model folder"):
        make_plan("drafter", head)
    for role, method in (("verifier", None), ("drafter", None), ("drafter", "ngram")):
        with pytest.raises(ConfigError, match=r"target is .*: only a drafter with draft_method eagle needs it"):
            make_plan(role, target, target=target, draft_method=method)
    with pytest.raises(ModelError, match=r"model is .*: holds no drafting head"):
        make_plan("drafter", target, target=target, draft_method="eagle")
    with pytest.raises(ModelError, match=r"model is .*: holds no model, but an EAGLE-3 head"):
        make_plan("verifier", head)
    with pytest.raises(ModelError, match=r"model is .*: holds no model, but an EAGLE-3 head"):
        make_plan("drafter", head, draft_method="model")
