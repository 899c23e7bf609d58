"""What can be loaded, and the sentence with which the rest is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from minedraft.device import Device
from minedraft.errors import ConfigError, ModelError
from minedraft.models.model_config import max_context
from minedraft.settings.loading import load_worker_settings
from minedraft_workers.composition import Plan
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.options import LoadOptions
from tests.support.in_process import load_actor
from tests.support.tiny_models import make_tiny_model


def load(path: Path, **options: Any) -> Executor:
    settings: dict[str, Any] = {"device": Device.parse("cpu").here(), "dtype": "float32", "num_blocks": 8}
    return Executor.load(path, LoadOptions(**(settings | options)))


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("bloom", {}, "0 of its 2 layers cache keys and values"),
        ("mpt", {}, "mpt does not run through transformers' attention interface"),
        ("bert", {}, "differs from its own forward"),
        ("qwen3_next", {"num_experts": 2, "moe_intermediate_size": 16}, "linear_attention layers"),
    ],
)
def test_a_model_that_would_answer_wrongly_is_refused(
    kind: str, overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path, kind, **overrides)
    if kind == "mpt":  # it counts its context under another name
        change_config(path, max_position_embeddings=512)
    with pytest.raises(ModelError, match=message):
        load(path)


def change_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initializer_range": "0.02"}, "config.json': transformers refuses it: .*initializer_range.* expected float"),
        ({"num_attention_heads": 3}, "config.json': transformers refuses it: .*not a multiple of"),
        ({"dtype": "float99"}, "config.json': transformers refuses it: AttributeError: .*float99"),
        ({"pad_token_id": 400}, "transformers cannot load it: AssertionError: Padding_idx must be within"),
        ({"hidden_act": "nope"}, "transformers cannot load it: KeyError: 'nope'"),
        ({"vocab_size": 321}, r"lm_head.weight \[320, 32\] \(config.json needs \[321, 32\]\)"),
        ({"model_type": "nope"}, "has no nope model, and code from a folder is never run"),
    ],
    ids=str,
)
def test_a_configuration_that_transformers_cannot_use_is_told_in_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path)
    change_config(path, **changes)
    with pytest.raises(ModelError, match=rf"^model is '.*{message}.*$") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_code_that_a_folder_brings_along_is_refused_and_not_run(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "model")
    change_config(path, auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(ModelError, match="auto_map names code"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_refused_not_made_up(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path)
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(path)


def test_bfloat16_runs_and_another_dtype_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path)
    executor = load(path, dtype="bfloat16")
    logits = executor.forward([ForwardSpan(1, 0, [5, 6, 7], 2)])
    assert (logits.dtype, executor.dtype_name) == (torch.float32, "bfloat16")
    with pytest.raises(ConfigError, match="dtype is 'float8': must be auto or one of float32, bfloat16"):
        load(path, dtype="float8")


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_draft_vocabulary_cuts_the_columns_of_the_logits(is_tied: bool, tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, tie_word_embeddings=is_tied)
    whole = load(path).forward([ForwardSpan(1, 0, [5, 300, 7], 3)])
    ids = torch.tensor([0, 2, 17, 319], dtype=torch.int32)
    save_file({"ids": ids}, path / "draft_vocab.safetensors")
    executor = load(path)
    assert executor.draft_vocab_ids is not None
    assert executor.draft_vocab_ids.tolist() == ids.tolist()
    assert executor.vocab_size == 320
    torch.testing.assert_close(executor.forward([ForwardSpan(1, 0, [5, 300, 7], 3)]), whole[:, ids.long()])
    assert executor.forward([ForwardSpan(2, 0, [5], 0)]).shape == (0, 4)


@pytest.mark.parametrize("ids", [[3, 2], [2, 2], [-1, 2], [2, 320]])
def test_a_broken_draft_vocabulary_is_refused(ids: list[int], tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path)
    save_file({"ids": torch.tensor(ids, dtype=torch.int32)}, path / "draft_vocab.safetensors")
    with pytest.raises(ModelError, match=r"ids must ascend without repeats within 0\.\.319"):
        load(path)


@pytest.mark.parametrize(
    "ropes",
    [
        {},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 4.0},
            "original_max_position_embeddings": 1024,
        },
    ],
    ids=str,
)
def test_the_context_of_a_folder_is_the_one_of_the_loaded_configuration(ropes: dict[str, Any]) -> None:
    written = {"max_position_embeddings": 4096, "head_dim": 8} | ropes
    assert max_context(LlamaConfig(**written).to_dict()) == max_context(written)


def test_a_context_that_the_kv_memory_cannot_hold_is_refused_or_shrinks_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = {"model": make_tiny_model(tmp_path), "listen": "unix:/tmp/m.sock", "dtype": "float32", "num_blocks": 8}
    plan = Plan.make(load_worker_settings({"role": "verifier", **flags}))
    assert load_actor(plan).info.max_model_len == 128
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the context is 128 tokens, less than the model's 512: the KV cache holds 128 tokens"
    ]
    with pytest.raises(ConfigError, match="max_model_len is 129: the KV cache holds 128 tokens"):
        load_actor(replace(plan, max_model_len=129))
