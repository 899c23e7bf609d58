"""Small draft models: which layers they are made of, and what they take from a larger one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scripts.drafter.config import Config
from scripts.drafter.model.compare import OF_DRAFTER, OF_ITSELF, OF_TARGET, compare
from scripts.drafter.model.cuts import cut_of, take_layers
from scripts.drafter.model.export import export_model
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.stages import MODEL
from scripts.drafter.store import load_json
from scripts.drafter.training.trainer import Budget
from tests.training.drafter_tiny import NEVER, taught, trained


@pytest.mark.parametrize("num_layers", [1, 2, 4, 6, 8, 12, 30])
def test_a_cut_keeps_first_layers_and_spreads_the_others_over_the_rest(num_layers):
    kept, starts = cut_of(num_layers, 0.25, 30)
    assert kept + len(starts) == num_layers
    assert kept == num_layers // 4
    assert starts[0] == kept
    assert starts == sorted(set(starts))
    assert starts[-1] < 30
    stand_for = [after - before for before, after in zip(starts, [*starts[1:], 30], strict=True)]
    assert max(stand_for) - min(stand_for) <= 1


def test_layers_come_from_the_larger_drafter_where_it_trained_some(config, target, tmp_path):
    run = taught(config, target, tmp_path, MODEL)
    source = run.new_drafter()
    assert (source.prefix, source.trained) == (2, [2, 3])
    with torch.no_grad():
        for parameter in source.parameters().values():
            parameter.add_(1.0)
    drafter = ModelDrafter(run.parts, config.model, config.training[MODEL], (0, [0, 3]))
    take_layers(drafter, source)
    first, last = (layer.mlp.up_proj.weight for layer in drafter.decoder.layers)
    torch.testing.assert_close(first, run.model.get_decoder().layers[0].mlp.up_proj.weight.float())
    torch.testing.assert_close(last, run.model.get_decoder().layers[3].mlp.up_proj.weight.float() + 1.0)
    torch.testing.assert_close(drafter.decoder.norm.weight, run.model.get_decoder().norm.weight.float() + 1.0)


def test_a_drafter_is_trained_on_from_its_own_weights(config: Config, target, tmp_path):
    run = trained(config, target, tmp_path / "run", MODEL)
    source = tmp_path / "source"
    export_model(run.trained_drafter(), target, "", source)
    still = replace(config, training={MODEL: replace(config.training[MODEL], learning_rate=0.0)})
    compare(replace(run, config=still), tmp_path, Budget(config.compare.tokens), source, NEVER)
    rows = load_json(tmp_path / "students.json", "compare")["rows"]
    assert rows[-2]["evaluation"] == rows[-1]["evaluation"]  # of a rate of 0: nothing else has changed its weights


def test_sizes_are_trained_for_the_same_tokens_from_either_start(config: Config, target, tmp_path):
    run = trained(config, target, tmp_path / "run", MODEL)
    source = tmp_path / "source"
    export_model(run.trained_drafter(), target, "", source)
    budget = Budget(config.compare.tokens)
    lines = compare(run, tmp_path, budget, source, NEVER)
    rows = load_json(tmp_path / "students.json", "compare")["rows"]
    assert [row["start"] for row in rows] == [OF_TARGET, OF_DRAFTER, OF_ITSELF, None]
    assert len(lines) == 4
    one, other, on, larger = rows
    assert on["trained_tokens"] >= config.compare.tokens
    assert (on["prefix"], on["trained"]) == (larger["prefix"], larger["trained"])
    assert one["trained_tokens"] == other["trained_tokens"] >= config.compare.tokens
    assert one["trained"] == other["trained"] == [2]
    assert larger["layers"] == 4
    for row in rows:
        greedy = row["evaluation"]["all"]["greedy"]
        assert 0.0 <= greedy["agreement"] <= 1.0
        assert min(greedy["tokens_per_round"]) >= 1.0
        assert row["t_draft_ms"] > 0
        assert math.isfinite(row["sequential"]["tokens_per_s"])
    again = compare(run, tmp_path, budget, source, NEVER)
    assert again[0].startswith("| 2 kept, 1 trained | 3 |")
    kept = load_json(tmp_path / "students.json", "compare")["rows"]
    assert [row["evaluation"] for row in kept] == [row["evaluation"] for row in rows]
