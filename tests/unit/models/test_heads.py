"""Folders of drafting heads: what they say, and the refusal of those that do not fit, before torch is imported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minedraft.errors import ModelError
from minedraft.models.folder import FolderInfo, check_model_folder
from minedraft.models.heads.folder import check_head_folder, is_head_folder
from minedraft.models.heads.layout import HeadLayout
from tests.support.tiny_heads import LAYOUTS, make_tiny_head
from tests.support.tiny_models import make_tiny_model

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> FolderInfo:
    folder = make_tiny_model(tmp_path_factory.mktemp("target") / "t", layers=4)
    return check_model_folder(folder, "target")


@pytest.fixture(scope="module")
def heads(target: FolderInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for layout in LAYOUTS:
        layers = 2 if layout == "minedraft" else 1
        make_tiny_head(folder / layout, target.path, layout, layers=layers)
    return folder


@dataclass(frozen=True)
class Edited:
    """A copy of a head with another configuration and other tensors."""

    folder: Path

    def config(self, **changes: object) -> None:
        file = self.folder / "config.json"
        values = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    def tensors(self, edit: Callable[[Tensors], object]) -> None:
        file = self.folder / "model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)


@pytest.fixture
def edited(heads: Path, tmp_path: Path) -> Callable[[str], Edited]:
    return lambda layout: Edited(Path(shutil.copytree(heads / layout, tmp_path / layout)))


def test_a_head_says_what_it_is_and_what_it_takes_from_its_target(heads: Path, target: FolderInfo) -> None:
    eagle, eagle3, ours = (check_head_folder(heads / layout, target, "draft") for layout in LAYOUTS)
    assert (eagle.layout, eagle3.layout, ours.layout) == (HeadLayout.EAGLE, HeadLayout.EAGLE_3, HeadLayout.EAGLE_3)
    assert (eagle.feature_layers, eagle.feature_size) == ((-1,), 32)
    assert (eagle3.feature_layers, eagle3.feature_size) == ((0, 1, 2), 96)
    assert eagle.draft_ids is None
    ids = load_file(heads / "eagle3" / "model.safetensors")["d2t"] + torch.arange(200)
    assert eagle3.draft_ids is not None
    assert eagle3.draft_ids.tolist() == ids.tolist()
    assert (eagle.embedding.tensor, eagle.output.tensor) == ("model.embed_tokens.weight", "lm_head.weight")
    assert {eagle.embedding.file.parent, eagle.output.file.parent} == {target.path}
    assert eagle3.output.file.parent == heads / "eagle3"
    assert (eagle3.vocab_size, eagle3.max_context, ours.config.num_layers) == (320, 512, 2)
    assert str(ours) == "EAGLE-3 head, 2 layers, features of 0, 1, 2, drafts from 200 of 320 tokens, 0 MB"
    assert str(eagle) == "EAGLE head, 1 layer, features of the final norm, drafts from all of 320 tokens, 0 MB"


def test_the_default_feature_layers_follow_from_the_targets_depth(
    edited: Callable[[str], Edited], target: FolderInfo
) -> None:
    head = edited("eagle3")
    head.config(eagle_aux_hidden_state_layer_ids=...)
    assert check_head_folder(head.folder, target, "draft").feature_layers == (2, 2, 1)
    head.config(eagle_config={"eagle_aux_hidden_state_layer_ids": [4, 0, -1]})
    assert check_head_folder(head.folder, target, "draft").feature_layers == (4, 0, -1)


def test_a_folder_is_known_to_be_a_head_by_its_tensors(heads: Path, target: FolderInfo, tmp_path: Path) -> None:
    assert all(is_head_folder(heads / layout) for layout in LAYOUTS)
    shutil.copytree(heads / "eagle3", tmp_path / "renamed")
    (tmp_path / "renamed" / "model.safetensors").rename(tmp_path / "renamed" / "head.safetensors")
    assert is_head_folder(tmp_path / "renamed")
    assert check_head_folder(tmp_path / "renamed", target, "draft").draft_ids is not None
    assert not is_head_folder(target.path)
    assert not is_head_folder(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert not is_head_folder(tmp_path)


def test_a_head_in_place_of_a_model_and_a_model_in_place_of_a_head_are_refused_with_both_methods(
    heads: Path, target: FolderInfo
) -> None:
    for layout in LAYOUTS:
        with pytest.raises(
            ModelError, match=r"draft is .*: holds no model, but an EAGLE(-3)? head: draft_method eagle .* model needs"
        ):
            check_model_folder(heads / layout, "draft")
    with pytest.raises(
        ModelError, match=r"draft is .*: holds no drafting head .*; draft_method eagle needs one, model a"
    ):
        check_head_folder(target.path, target, "draft")
    with pytest.raises(ModelError, match="no such folder"):
        check_head_folder(heads / "nothing", target, "draft")


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("eagle3", {"hidden_size": ...}, "hidden_size must be given, a positive integer"),
    ("eagle3", {"hidden_size": 64}, "made for a target of hidden size 64; that of"),
    ("minedraft", {"target_hidden_size": 48}, "made for a target of hidden size 48; that of"),
    ("eagle3", {"intermediate_size": "big"}, "intermediate_size must be a positive integer, not 'big'"),
    ("eagle3", {"num_hidden_layers": 2}, r"has no tensor layers.1.input_layernorm.weight, which this layout needs"),
    ("minedraft", {"num_hidden_layers": 1}, r"has a tensor layers.1.\S+, which is not computed in this layout"),
    ("eagle1", {"num_hidden_layers": 2}, "num_hidden_layers is 2: a head of this layout has 1"),
    ("eagle3", {"hidden_act": "gelu"}, "hidden_act is 'gelu': only silu is supported"),
    ("eagle3", {"rms_norm_eps": "0"}, "rms_norm_eps must be a small positive number, not '0'"),
    ("eagle3", {"rope_theta": -1.0}, "rope_theta must be a positive number, not -1.0"),
    ("eagle3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic' is not supported in a head"),
    ("eagle3", {"eagle_aux_hidden_state_layer_ids": [0, 1, 5]}, "has 5: the target has layers 0 to 4"),
    ("eagle3", {"eagle_aux_hidden_state_layer_ids": [0, 1]}, r"tensor fc.weight is \[32, 96\], must be \[32, 64\]"),
    ("eagle3", {"eagle_aux_hidden_state_layer_ids": "012"}, "must be a list of integers, not '012'"),
    ("eagle3", {"head_dim": 16}, r"self_attn.k_proj.weight is \[16, 64\], must be \[32, 64\] for the target"),
]


@pytest.mark.parametrize(("layout", "changes", "message"), CONFIGS)
def test_a_configuration_that_does_not_fit_is_refused(
    layout: str, changes: dict[str, Any], message: str, edited: Callable[[str], Edited], target: FolderInfo
) -> None:
    head = edited(layout)
    head.config(**changes)
    with pytest.raises(ModelError, match=message) as caught:
        check_head_folder(head.folder, target, "draft")
    assert caught.value.field == "draft"
    assert str(head.folder) in str(caught.value.value)


TENSORS: list[tuple[str, Callable[[Tensors], object], str]] = [
    ("eagle3", lambda t: t.pop("norm.weight"), "has no tensor norm.weight, which this layout needs"),
    ("eagle3", lambda t: t.pop("d2t"), "has no tensor d2t, which this layout needs"),
    ("eagle1", lambda t: t.pop("layers.0.mlp.up_proj.weight"), r"has no tensor layers.0.mlp.up_proj.weight"),
    ("eagle3", lambda t: t.update(d2t=t["d2t"].int()), r"tensor d2t is I32 \[200\], must be I64"),
    ("eagle3", lambda t: t["d2t"].fill_(150), "d2t makes column 170 token 320: must ascend within 0 to 319"),
    ("eagle3", lambda t: t["d2t"].sub_(t["d2t"][0] + 1), "d2t makes column 0 token -1: must ascend within 0 to 319"),
    ("eagle3", lambda t: t["d2t"][9:].sub_(200), r"d2t makes column 9 token -?\d+: must ascend within 0 to 319"),
    ("eagle3", lambda t: t.update({"fc.weight": t["fc.weight"].char()}), "fc.weight is I8, must be BF16 or F16 or F32"),
    ("eagle3", lambda t: t.update(t2d=t["t2d"].int()), "tensor t2d is I32, must be BOOL"),
    ("eagle1", lambda t: t.update({"fc.weight": t["fc.weight"][1:].clone()}), r"is \[31, 64\], must be \[32, 64\]"),
    (
        "eagle3",
        lambda t: t.update({"midlayer.self_attn.q_norm.weight": torch.ones(8)}),
        "has a tensor midlayer.self_attn.q_norm.weight, which is not computed in this layout",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "edit", "message"), TENSORS)
def test_tensors_that_do_not_fit_are_refused(
    layout: str,
    edit: Callable[[Tensors], object],
    message: str,
    edited: Callable[[str], Edited],
    target: FolderInfo,
) -> None:
    head = edited(layout)
    head.tensors(edit)
    with pytest.raises(ModelError, match=message):
        check_head_folder(head.folder, target, "draft")


def test_a_head_for_another_target_is_refused_with_the_shapes(heads: Path, tmp_path: Path) -> None:
    wide = check_model_folder(make_tiny_model(tmp_path / "wide", hidden_size=64, layers=4), "target")
    for layout in LAYOUTS:
        with pytest.raises(ModelError, match=r"made for a target of hidden size 32; that of .*wide is 64"):
            check_head_folder(heads / layout, wide, "draft")
    few = check_model_folder(make_tiny_model(tmp_path / "few", layers=1), "target")
    with pytest.raises(ModelError, match="has 2: the target has layers 0 to 1"):
        check_head_folder(heads / "eagle3", few, "draft")
    small = check_model_folder(make_tiny_model(tmp_path / "small", layers=4, vocab_size=300), "target")
    with pytest.raises(ModelError, match=r"d2t makes column \d+ token 3\d\d: must ascend within 0 to 299"):
        check_head_folder(heads / "eagle3", small, "draft")


def test_a_truncated_file_and_a_link_out_of_the_folder_are_refused(
    edited: Callable[[str], Edited], target: FolderInfo, tmp_path: Path
) -> None:
    head = edited("eagle3")
    file = head.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"model.safetensors: truncated"):
        check_head_folder(head.folder, target, "draft")
    file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match="a link to a file outside the model folder"):
        check_head_folder(head.folder, target, "draft")
