"""The shipped drafter: assembled from the target, checked by sha256, refused for another target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minedraft.errors import ModelError
from minedraft.models.folder import check_model_folder
from minedraft.models.heads.folder import check_head_folder
from minedraft.models.packed_weights import unpack_matrices
from minedraft.models.shipped_drafter import DRAFTER_MANIFEST, assemble_drafter, main, verify_asset
from scripts.drafter import exports, stages
from scripts.drafter.config import Config
from scripts.drafter.head.export import head_tensors, ship_head
from scripts.drafter.head.objective import HeadDrafter
from scripts.drafter.model.export import ship_model, trained_tensors
from scripts.drafter.model.network import run_decoder
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.stages import HEAD, MODEL, Run, stored_as_shipped
from scripts.drafter.store import DrafterError, save_tensors, sha256_of
from tests.training.drafter_tiny import NEVER, taught

ROOT = Path(__file__).parents[2]


def untrained(config: Config, target: Path, work: Path, kind: str, ids: list[int] | None = None) -> Any:
    """A drafter before any start, with the weights that the shipped format holds without loss."""
    run = Run(config, work, target, kind)
    save_tensors(run.training / "draft_vocab.safetensors", {"ids": torch.tensor(ids or [1, 4, 6, 20])})
    torch.manual_seed(0)
    drafter = run.new_drafter()
    stored_as_shipped(drafter)
    return drafter


def export(config: Config, target: Path, asset: Path, ids: list[int] | None = None) -> ModelDrafter:
    drafter = untrained(config, target, asset.parent / "work", MODEL, ids)
    ship_model(drafter, target, "# card\n", asset)
    return drafter


def test_assembled_folder_loads_as_it_is_and_is_the_draft_model(config, target, tmp_path):
    drafter = export(config, target, tmp_path / "asset")
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32, local_files_only=True)
    whole = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, local_files_only=True)
    ids = torch.tensor([3, 8, 9, 12])
    with torch.no_grad():
        prefix = whole.model(ids[None], output_hidden_states=True).hidden_states[2]
        expected = run_decoder(drafter.decoder, prefix)
        got = model.model(ids[None]).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
    assert load_file(tmp_path / "full" / "draft_vocab.safetensors")["ids"].dtype == torch.int32


def test_assembled_head_is_the_trained_one_and_fits_its_target(config, target, tmp_path):
    drafter: HeadDrafter = untrained(config, target, tmp_path / "work", HEAD)
    ship_head(drafter, target, "# card\n", tmp_path / "asset")
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    info = check_head_folder(tmp_path / "full", check_model_folder(target, "target"), "draft")
    assert (list(info.draft_ids or []), info.feature_layers) == ([1, 4, 6, 20], (2, 3, 4))
    assembled = load_file(tmp_path / "full" / "model.safetensors")
    for name, tensor in head_tensors(drafter).items():
        torch.testing.assert_close(assembled[name].float(), tensor, rtol=2**-7, atol=1e-3)


def test_assembled_weights_are_the_codes_times_their_scales_in_bfloat16(config, target, tmp_path):
    drafter = export(config, target, tmp_path / "asset")
    stored = load_file(tmp_path / "asset" / "trained_layers.safetensors")
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    assembled = load_file(tmp_path / "full" / "model.safetensors")
    trained = trained_tensors(drafter)
    assert {name.removesuffix(".scales") for name in stored} == trained.keys()
    for name, weight in trained.items():
        assert assembled[name].dtype == torch.bfloat16
        if weight.ndim == 1:
            assert torch.equal(assembled[name], stored[name])
            continue
        parts = {part: stored[part].numpy() for part in (name, name + ".scales")}
        unpacked = torch.from_numpy(unpack_matrices(parts, tmp_path)[name])
        assert torch.equal(assembled[name], unpacked.bfloat16())
        largest = float(stored[name + ".scales"].max())
        torch.testing.assert_close(assembled[name].float(), weight, rtol=2**-8, atol=largest / 2)


def save_again(asset: Path, tensors: dict[str, torch.Tensor], name: str = "trained_layers.safetensors") -> None:
    """Ships other tensors in a file, as a manifest that names them says."""
    save_file(tensors, asset / name)
    manifest = json.loads((asset / DRAFTER_MANIFEST).read_text())
    manifest["sha256"][name] = sha256_of(asset / name)
    (asset / DRAFTER_MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: {name: tensor.float()}, "must be a matrix of uint8"),
        (lambda name, tensor: {name + ".scales": tensor[:1, 0].half()}, r"must be float16 \[24, 1\] for 24 columns"),
        (lambda name, tensor: {"lost.scales": tensor[0].half()}, "'lost.scales' belongs to no matrix"),
    ],
)
def test_trained_layers_that_are_not_of_the_format_are_refused(config, target, tmp_path, change, message):
    export(config, target, tmp_path / "asset")
    stored = load_file(tmp_path / "asset" / "trained_layers.safetensors")
    name = "model.layers.2.self_attn.q_proj.weight"
    save_again(tmp_path / "asset", stored | change(name, stored[name]))
    with pytest.raises(ModelError, match=message):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(("name", "limit"), [("smollm2-135m-drafter", 27_000_000), ("smollm2-135m-eagle", 20_000_000)])
def test_shipped_drafters_are_whole_and_small(name, limit):
    asset = ROOT / "minedraft" / "assets" / name
    verify_asset(asset)
    assert sum(path.stat().st_size for path in asset.iterdir()) <= limit


def test_the_module_as_a_program_says_why_it_failed(config, target, tmp_path, capsys):
    export(config, target, tmp_path / "asset")
    arguments = [str(tmp_path / "asset"), str(target), str(tmp_path / "full")]
    assert main(arguments) == 0
    (tmp_path / "asset" / "README.md").write_text("changed")
    assert main(arguments) == 1
    assert "modified or truncated" in capsys.readouterr().err.splitlines()[-1]


def test_assembling_again_replaces_the_folder_and_leaves_nothing_beside_it(config, target, tmp_path):
    export(config, target, tmp_path / "asset")
    for _ in range(2):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "out" / "full")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["full"]


def test_a_folder_that_is_no_drafter_is_not_replaced(config, target, tmp_path):
    export(config, target, tmp_path / "asset")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ModelError, match="not replaced"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "mine")


@pytest.mark.parametrize("name", ["trained_layers.safetensors", "draft_vocab.safetensors", "config.json"])
def test_a_changed_file_is_refused(config, target, tmp_path, name):
    export(config, target, tmp_path / "asset")
    path = tmp_path / "asset" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_another_target_is_refused(config, target, tmp_path):
    export(config, target, tmp_path / "asset")
    other = tmp_path / "other"
    shutil.copytree(target, other)
    tensors = load_file(other / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * 1.5}, other / "model.safetensors")
    with pytest.raises(ModelError, match=f"not {target.name}, the model that the drafter is made for"):
        assemble_drafter(tmp_path / "asset", other, tmp_path / "full")


def test_a_manifest_of_another_format_is_refused(config, target, tmp_path):
    export(config, target, tmp_path / "asset")
    path = tmp_path / "asset" / DRAFTER_MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ModelError, match="format 2, this version reads format 3"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")


def test_a_map_out_of_range_is_refused(config, target, tmp_path):
    export(config, target, tmp_path / "asset")
    save_again(tmp_path / "asset", {"ids": torch.tensor([1, 4, 64], dtype=torch.int32)}, "draft_vocab.safetensors")
    with pytest.raises(ModelError, match="below 64"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")


@pytest.mark.parametrize("kind", [HEAD, MODEL])
def test_a_shipped_folder_has_the_figures_in_its_card(kind, config, target, tmp_path):
    run = taught(config, target, tmp_path, kind)
    stages.training(run, 60, 0, None, NEVER)
    with pytest.raises(DrafterError, match="run the stage `evaluation` first"):
        exports.export(run, tmp_path / "asset", is_shipped=True)
    lines = exports.evaluation(run, tmp_path / "results", NEVER)
    assert any(line.startswith("| code | sampled |") for line in lines)
    assert json.loads((tmp_path / "results" / f"{kind}.json").read_text())["prompts"]["code"] == 2
    exports.export(run, tmp_path / "asset", is_shipped=True)
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    assert lines[-1] in (tmp_path / "full" / "README.md").read_text()
