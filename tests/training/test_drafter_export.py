"""The shipped drafter: assembled from the target, checked by sha256, refused for another target."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minedraft.errors import ModelError
from minedraft.models.row_scales import ROWS_PER_SCALE, pack_matrices, unpack_matrices
from minedraft.models.shipped_drafter import DRAFTER_MANIFEST, assemble_drafter, main, verify_asset
from scripts.drafter import reports, stages
from scripts.drafter.config import Config
from scripts.drafter.export import export_asset, trained_tensors
from scripts.drafter.llama import load_target
from scripts.drafter.store import DrafterError, sha256_of
from scripts.drafter.student import Student, make_batch
from tests.training.drafter_tiny import prepare

ROOT = Path(__file__).parents[2]


def export(config: Config, target: Path, asset: Path, ids: list[int] | None = None) -> Student:
    student = Student(load_target(target, config.target), config.student.trained)
    for parameter in student.parameters():  # what the format holds without loss
        if parameter.ndim == 2:
            packed = pack_matrices({"m": parameter.detach().numpy()})
            parameter.data.copy_(torch.from_numpy(unpack_matrices(packed, asset)["m"]))
    export_asset(config, student, torch.tensor(ids or [1, 4, 6, 20]), target, "# card\n", asset)
    return student


def test_assembled_folder_loads_as_it_is_and_is_the_student(config, target, tmp_path):
    student = export(config, target, tmp_path / "asset")
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32, local_files_only=True)
    whole = load_target(target, config.target)
    ids = torch.tensor([3, 8, 9, 12])
    with torch.no_grad():
        prefix = whole.model(ids[None], output_hidden_states=True).hidden_states[2][0]
        batch = make_batch(prefix[:2], [prefix[2:]])
        expected = student(batch)
        got = model.model(ids[None]).last_hidden_state[0]
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
    assert load_file(tmp_path / "full" / "draft_vocab.safetensors")["ids"].dtype == torch.int32


def test_assembled_weights_are_the_codes_times_their_scales_in_bfloat16(config, target, tmp_path):
    student = export(config, target, tmp_path / "asset")
    stored = load_file(tmp_path / "asset" / "trained_layers.safetensors")
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    assembled = load_file(tmp_path / "full" / "model.safetensors")
    trained = trained_tensors(student, config.student.prefix)
    assert {name.removesuffix(".scales") for name in stored} == trained.keys()
    for name, weight in trained.items():
        assert assembled[name].dtype == torch.bfloat16
        if weight.ndim == 1:
            assert torch.equal(assembled[name], stored[name])
            continue
        scales = stored[name + ".scales"].float().repeat_interleave(ROWS_PER_SCALE)[: len(weight), None]
        assert torch.equal(assembled[name], (stored[name] * scales).bfloat16())
        torch.testing.assert_close(assembled[name].float(), weight, rtol=2**-8, atol=float(scales.max()) / 2)


def save_again(asset: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Ships other trained layers, as a manifest that names them says."""
    path = asset / "trained_layers.safetensors"
    save_file(tensors, path)
    manifest = json.loads((asset / DRAFTER_MANIFEST).read_text())
    manifest["sha256"][path.name] = sha256_of(path)
    (asset / DRAFTER_MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: {name: tensor.float()}, "must be a matrix of int8"),
        (lambda name, tensor: {name + ".scales": tensor[:1, 0].half()}, r"must be float16 \[6\] for 24 rows"),
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


def test_the_shipped_drafter_is_whole_and_takes_at_most_32_mb():
    asset = ROOT / "minedraft" / "assets" / "smollm2-135m-drafter"
    verify_asset(asset)
    assert sum(path.stat().st_size for path in asset.iterdir()) <= 32_000_000


def test_the_module_as_a_program_says_why_it_failed(config, target, tmp_path, capsys):
    export(config, target, tmp_path / "asset")
    arguments = [str(tmp_path / "asset"), str(target), str(tmp_path / "full")]
    assert main(arguments) == 0
    (tmp_path / "asset" / "README.md").write_text("changed")
    assert main(arguments) == 78
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
    with pytest.raises(ModelError, match="not tiny, the model that the drafter is made for"):
        assemble_drafter(tmp_path / "asset", other, tmp_path / "full")


def test_a_manifest_of_another_format_is_refused(config, target, tmp_path):
    export(config, target, tmp_path / "asset")
    path = tmp_path / "asset" / DRAFTER_MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(ModelError, match="format 1, this version reads format 2"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")


def test_a_map_out_of_range_is_refused(config, target, tmp_path):
    export(config, target, tmp_path / "asset", ids=[1, 4, 64])
    with pytest.raises(ModelError, match="below 64"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")


def test_an_export_that_changes_the_trained_weights_is_noticed(config, target, tmp_path, monkeypatch):
    prepare(config, target, tmp_path)
    stages.training(config, tmp_path, target, 40, lambda *_: None)

    def export_changed(config: Config, student: Student, *others: Any) -> dict[str, int]:
        changed = copy.deepcopy(student)
        changed.norm.data *= 1.25
        return export_asset(config, changed, *others)

    monkeypatch.setattr(reports, "export_asset", export_changed)
    with pytest.raises(DrafterError, match=r"norm of the assembled drafter differs by 25\.\d% from the trained one"):
        reports.quantised(config, tmp_path, target, tmp_path / "results")


def test_evaluation_and_export_write_figures_card_and_weights(config, target, tmp_path):
    prepare(config, target, tmp_path)
    stages.training(config, tmp_path, target, 200, lambda *_: None)
    lines = reports.evaluation(config, tmp_path, target, tmp_path / "results")
    assert any(line.startswith("| code | greedy |") for line in lines)
    assert (tmp_path / "results" / "evaluation.png").stat().st_size > 1000
    lines = reports.quantised(config, tmp_path, target, tmp_path / "results")
    assert any(line.startswith("| code | sampled |") for line in lines)
    assert json.loads((tmp_path / "results" / "quantised.json").read_text())["prompts"]["code"] == 2
    reports.export(config, tmp_path, target, tmp_path / "results", tmp_path / "asset")
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    assert "Figures" in (tmp_path / "full" / "README.md").read_text()
