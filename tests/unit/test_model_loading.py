"""What can be loaded, and the sentence with which the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from minedraft_workers.device import Device
from minedraft_workers.loading import max_context
from minedraft_workers.model import Executor, ForwardSpan
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from minedraft.errors import ConfigError, ModelError
from tests.tiny_models import make_tiny_model


def load(path: Path, **options: Any) -> Executor:
    settings: dict[str, Any] = {"device": Device.parse("cpu"), "dtype": "float32", "num_blocks": 8}
    return Executor.load(path, **(settings | options))


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("bloom", {}, "0 of its 2 layers keep keys and values"),
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
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    with pytest.raises(ModelError, match=message):
        load(path)


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


def test_a_rope_that_changes_with_length_limits_the_context_to_where_it_does_not() -> None:
    plain = LlamaConfig(max_position_embeddings=4096)
    assert max_context(plain) == 4096
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert max_context(LlamaConfig(max_position_embeddings=4096, rope_parameters=dynamic)) == 4096
    dynamic["original_max_position_embeddings"] = 1024
    assert max_context(LlamaConfig(max_position_embeddings=4096, rope_parameters=dynamic)) == 1024
