"""The paper's matrix: what calibrates it, what it covers, how gains are counted, and the committed file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minedraft.types import Mode
from scripts.lib.forecast.gains import gains_of_pair, pick
from scripts.lib.forecast.matrix import Cell, cell_json, matrix, simulate_cell
from scripts.lib.forecast.published import (
    MINEDRAFT_TOKENS_PER_S,
    PUBLISHED,
    SD_TOKENS_PER_S,
    TETRIS_1_TOKENS_PER_S,
)
from scripts.lib.forecast.reference import calibrate, reference_machine

FILE = Path(__file__).parents[3] / "scripts" / "results" / "forecast" / "paper.json"


@pytest.mark.parametrize(("mode", "published"), [(Mode.SD, SD_TOKENS_PER_S), (Mode.MINEDRAFT, MINEDRAFT_TOKENS_PER_S)])
def test_the_two_numbers_that_calibrate_the_engine_come_out_again(mode: Mode, published: float) -> None:
    machine = reference_machine("qwen3-32b", "qwen3-1.7b", calibrate())
    run = simulate_cell(machine, Cell("pairs", "qwen3-32b", "qwen3-1.7b", mode, 16, 2))
    assert run.full_tokens_per_s == pytest.approx(published, rel=0.02)


def test_the_third_published_number_is_predicted() -> None:
    """It calibrates nothing."""
    rows = json.loads(FILE.read_text())["rows"]
    cell = {"draft": "qwen3-1.7b", "mode": "minedraft", "draft_len": 2, "extra": 1}
    simulated = pick(rows, experiment="pairs", **cell)[0]["tokens_per_s"]
    assert simulated == pytest.approx(TETRIS_1_TOKENS_PER_S, rel=0.05)


def test_the_matrix_is_the_papers() -> None:
    cells = list(matrix())
    pairs = {(cell.target, cell.draft) for cell in cells if cell.experiment == "pairs"}
    assert pairs == set(PUBLISHED)
    assert {cell.draft_len for cell in cells if cell.mode.has_drafts} == {1, 2, 3, 4, 5}
    assert {cell.size for cell in cells if cell.experiment == "m" and cell.mode is Mode.MINEDRAFT} == {8, 16, 32, 64}
    assert {cell.num_samples for cell in cells if cell.experiment == "n"} == {1, 2, 3}
    assert {cell.extra for cell in cells if cell.experiment == "tetris"} == {1, 2, 3, 4, 5}


def test_a_committed_cell_is_simulated_again_to_the_last_digit() -> None:
    cell = Cell("pairs", "vicuna-33b", "vicuna-33b-eagle", Mode.MINEDRAFT, 16, 3, extra=2)
    machine = reference_machine(cell.target, cell.draft, calibrate())
    assert cell_json(cell, simulate_cell(machine, cell)) in json.loads(FILE.read_text())["rows"]


def test_gains_are_those_of_the_paper() -> None:
    def row(mode: str, size: int, k: int, rate: float, makespan: float = 1.0, extra: int = 0) -> dict[str, object]:
        names = {"mode": mode, "size": size, "draft_len": k, "extra": extra}
        return names | {"tokens_per_s": rate, "makespan_per_request_ms": makespan}

    rows = [
        row("ar", 32, 0, 200), row("sd", 16, 1, 100, 10), row("sd", 16, 2, 90, 10), row("sd", 32, 1, 160),
        row("minedraft", 16, 1, 130, 9), row("minedraft", 16, 2, 144, 8), row("minedraft", 16, 2, 150, 7.5, extra=1),
    ]  # fmt: skip
    gains = gains_of_pair(rows, 16)
    assert gains["over_sd"] == pytest.approx(100 * (150 / 90 - 1))
    assert gains["alone"] == pytest.approx(60)
    assert gains["where_sd_peaks"] == pytest.approx(30)
    assert gains["makespan"] == pytest.approx(25)
    assert gains["equal_in_flight"] == pytest.approx(100 * (150 / 160 - 1))
    assert gains["over_ar"] == pytest.approx(-25)
