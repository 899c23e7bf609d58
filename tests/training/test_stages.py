"""scripts/train_drafter on a tiny random model, end to end, for both kinds of drafter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from scripts.drafter import config as configs
from scripts.drafter.main import main
from scripts.drafter.model.compare import speeds


@pytest.fixture
def config_file(config, tmp_path) -> Path:
    """The constants of the tests, as a file of the command line."""
    lines = [f"seed = {config.seed}", "packages = {}"]
    tables = {name: getattr(config, name) for name in ("prompts", "answers", "draft_vocabulary", "head", "model")}
    tables |= {"evaluation": config.evaluation, "compare": config.compare}
    tables |= {f"training.{kind}": settings for kind, settings in config.training.items()}
    for name, settings in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(getattr(settings, key))}" for key in type(settings).__slots__]
    path = tmp_path / "constants.toml"
    path.write_text("\n".join(lines))
    assert configs.load_config(path).answers == config.answers
    return path


def test_the_pace_of_a_round_is_set_by_the_slower_side_where_batches_overlap():
    found = speeds([1.5, 1.9], 10.0, [12.0, 13.0], 2)
    assert found["sequential"] == {"k": 1, "tokens_per_s": round(2 * 1500 / 22, 1)}
    assert found["overlapped"] == {"k": 1, "tokens_per_s": 2 * 1500 / 12}
    assert speeds([1.5, 1.9], 1.0, [12.0, 13.0], 2)["overlapped"]["k"] == 2


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["head", "model"])
def test_one_command_makes_a_drafter_of_a_file_of_prompts(kind, target, config_file, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "abc"}, {"turns": ["de", "f"]}, {"messages": [{"role": "user", "content": "gh"}]}]
    prompts.write_text("\n".join(json.dumps(row) for row in rows * 4))
    output = run(
        "--target", target, "--prompts", prompts, "--kind", kind, "--work", tmp_path / "run", "--config", config_file,
        "--train-tokens", 80, "--results", tmp_path / "results",
    )  # fmt: skip
    for stage in ("prompts", "answers", "teacher", "training", "evaluation", "export"):
        assert f"{stage}: done in" in output
    drafter = tmp_path / "run" / "drafter"
    result = json.loads((tmp_path / "results" / f"{kind}.json").read_text())
    assert result["acceptance"]["greedy"]["given"]["trained"]["rounds"] > 0
    assert list(result["stages"]) == ["prompts", "answers", "teacher", "training"], "those before the evaluation"
    assert (tmp_path / "results" / f"{kind}.png").stat().st_size > 1000
    tensors = load_file(drafter / "model.safetensors")
    if kind == "head":
        ids = tensors["d2t"] + torch.arange(32)
        assert tensors["t2d"].nonzero()[:, 0].tolist() == ids.tolist()
        assert tensors["layers.1.self_attn.q_proj.weight"].shape == (24, 24)
    else:
        model = AutoModelForCausalLM.from_pretrained(drafter, local_files_only=True)
        assert model.config.num_hidden_layers == 4
        compare = ("compare", "--kind", kind, "--target", target, "--work", tmp_path / "run", "--config", config_file)
        assert "| 2 kept, 1 trained | 3 |" in run(*compare)
        assert (drafter / "tokenizer.json").exists()
