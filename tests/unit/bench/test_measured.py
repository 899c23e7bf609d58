"""Predictions beside what a benchmark measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from minedraft.bench.measured import fit_rows, read_rows
from minedraft.cli.forecast.predict import predict
from minedraft.cli.forecast.whole_run import simulate_rows
from minedraft.errors import ConfigError

ROOT = Path(__file__).parents[3]
RESULTS = [ROOT / "scripts" / "results" / name for name in ("smollm2.json", "qwen.json")]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_committed_results_are_predicted(path: Path) -> None:
    rows = read_rows(path)
    costs = fit_rows(rows)
    ratios = [row.predicted(costs).tokens_per_s / row.decode_tokens_per_s for row in rows]
    assert len(ratios) >= 12
    assert all(0.9 <= ratio <= 1.1 for ratio in ratios), ratios
    assert sum(0.96 <= ratio <= 1.04 for ratio in ratios) >= 10, ratios


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_whole_runs_of_the_committed_results_are_simulated(path: Path) -> None:
    """All that repeat: one row's own repeats differ by 27 %, as another process had the machine."""
    rows = read_rows(path)
    simulated = simulate_rows(rows, fit_rows(rows))
    steady = [whole for whole in simulated if whole.row.spread < 0.2]
    assert len(simulated) == 12
    assert len(steady) >= 11
    assert all(whole.is_within for whole in steady), [(whole.row.label, whole.ratio) for whole in steady]


def test_the_command_says_which_mode_is_best() -> None:
    result = CliRunner().invoke(predict, [str(RESULTS[0]), "--in-flight", "1,8"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "12 of 12 within 10 %" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert any(line[:1] == ["8"] and line[-1] == "ar" for line in lines)
    assert all(len(line.rstrip()) <= 80 for line in result.output.splitlines()[:20])


def test_the_json_has_costs_rows_and_map() -> None:
    arguments = [str(RESULTS[0]), "--in-flight", "1,8", "--acceptance", "0.9", "--json"]
    content = json.loads(CliRunner().invoke(predict, arguments, catch_exceptions=False).output)
    assert content["acceptance"] == 0.9
    assert content["costs"]["verify"]["base_s"] > 0
    assert len(content["rows"]) == 12
    assert [(p["mode"], p["num_in_flight"]) for p in content["map"]] == [
        ("ar", 1), ("sd", 1), ("ar", 8), ("sd", 8), ("minedraft", 8)
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", '{"tables": 3}', '{"tables": []}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ConfigError, match="result"):
        read_rows(tmp_path / "other.json")


def test_lengths_that_a_file_tells_are_simulated(tmp_path: Path) -> None:
    content = json.loads(RESULTS[0].read_text())
    for row in content["tables"][0]["rows"]:
        for run in row["runs"]:
            run |= {"input_lens": [300, 20, 30, 40], "output_lens": [10, 20, 30, 40]}
    (tmp_path / "r.json").write_text(json.dumps(content))
    rows = read_rows(tmp_path / "r.json")
    first, last = (simulate_rows([row], fit_rows(rows))[0].run for row in (rows[0], rows[-1]))
    assert first.num_tokens == 100
    assert last.num_tokens == 16 * 40, "this table does not tell"
