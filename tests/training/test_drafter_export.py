"""The shipped drafter: assembled from the target, checked by sha256, refused for another target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minedraft.errors import ModelError
from minedraft.models.shipped_drafter import DRAFTER_MANIFEST, assemble_drafter, main
from scripts.drafter import reports, stages
from scripts.drafter.config import Config
from scripts.drafter.export import export_asset
from scripts.drafter.llama import load_target
from scripts.drafter.student import Student, make_batch
from tests.training.drafter_tiny import prepare


def export(config: Config, target: Path, asset: Path, ids: list[int] | None = None) -> Student:
    student = Student(load_target(target, config.target), config.student.trained)
    for parameter in student.parameters():
        parameter.data.copy_(parameter.data.bfloat16())
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


def test_the_module_as_a_program_says_why_it_failed(config, target, tmp_path, capsys):
    export(config, target, tmp_path / "asset")
    arguments = [str(tmp_path / "asset"), str(target), str(tmp_path / "full")]
    assert main(arguments) == 0
    (tmp_path / "asset" / "README.md").write_text("changed")
    assert main(arguments) == 78
    assert "changed or truncated" in capsys.readouterr().err.splitlines()[-1]


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
    with pytest.raises(ModelError, match="another model than tiny"):
        assemble_drafter(tmp_path / "asset", other, tmp_path / "full")


def test_a_manifest_of_another_format_is_refused(config, target, tmp_path):
    export(config, target, tmp_path / "asset")
    path = tmp_path / "asset" / DRAFTER_MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ModelError, match="format 2"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")


def test_a_map_out_of_range_is_refused(config, target, tmp_path):
    export(config, target, tmp_path / "asset", ids=[1, 4, 64])
    with pytest.raises(ModelError, match="below 64"):
        assemble_drafter(tmp_path / "asset", target, tmp_path / "full")


def test_evaluation_and_export_write_figures_card_and_weights(config, target, tmp_path):
    prepare(config, target, tmp_path)
    stages.training(config, tmp_path, target, 200, lambda *_: None)
    lines = reports.evaluation(config, tmp_path, target, tmp_path / "results")
    assert any(line.startswith("| code | greedy |") for line in lines)
    assert (tmp_path / "results" / "evaluation.png").stat().st_size > 1000
    reports.export(config, tmp_path, target, tmp_path / "results", tmp_path / "asset")
    assemble_drafter(tmp_path / "asset", target, tmp_path / "full")
    assert "Figures" in (tmp_path / "full" / "README.md").read_text()
