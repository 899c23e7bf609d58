"""The tables and the picture of draft models of several sizes, of made-up figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.lib.report.results import Results
from scripts.lib.report.tables.drafters import student_rates_table, students_chart, students_table
from scripts.lib.studies.sizes import best_of

_KINDS = ("all", "chat", "code", "summarising", "tools")


def _trained(layers: int, start: str | None, rounds: float) -> dict[str, Any]:
    greedy = {"agreement": rounds / 4, "tokens_per_round": [rounds + k / 10 for k in range(4)]}
    kinds = {kind: {"greedy": greedy} for kind in _KINDS}
    budget = {"trained_tokens": 240_000, "seconds": 10 * layers} if start else {}
    return {"layers": layers, "start": start, "evaluation": kinds, **budget}


def _served(drafter: str, mode: str, k: int, rate: float) -> dict[str, Any]:
    times = {"draft_ms": 2.0 * k, "verify_ms": 10.0}
    return {"drafter": drafter, "mode": mode, "k": k, "in_flight": 4, "tokens_per_s": rate, **times}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two students, the second start of one, the shipped drafter and what it is trained on; one was served."""
    rows = [
        _trained(21, "itself", 2.2),
        _trained(21, None, 2.0),
        _trained(8, "target", 1.5),
        _trained(4, "drafter", 1.4),
        _trained(4, "target", 1.3),
    ]
    served = [_served("4 layers", "sd", k, rate) for k, rate in ((1, 200.0), (2, 230.0), (3, 210.0))]
    served += [
        _served("shipped", "sd", 2, 220.0),
        _served("shipped, trained on", "sd", 2, 225.0),
        _served("4 layers", "minedraft", 1, 250.0),
        _served("", "ar", 0, 180),
    ]
    head = {"tokens_per_round": [1.6, 1.9, 2.1, 2.2], "accepted_at": [0.6]}
    kinds = {kind: {"trained": head} for kind in _KINDS}
    for name, content in (
        ("scripts/drafter/results/head.json", {"acceptance": {"greedy": kinds}}),
        ("scripts/drafter/results/students.json", {"rows": rows}),
        ("scripts/results/drafting/students.json", {"rows": served}),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return Results(tmp_path)


def test_sizes_of_one_start_stand_together_with_their_budget_and_their_cost(results: Results) -> None:
    rows = [line.split(" | ") for line in students_table(results, "drafting/students.json").splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "| 4 layers",
        "| 8 layers",
        "| 4 layers, from the shipped",
        "| shipped",
        "| shipped, trained on",
        "| head",
    ]
    assert rows[0][1:7] == ["240", "40", "0.33", "1.40", "1.50", "1.60"]
    assert rows[3][1:3] == ["", ""], "its training is told elsewhere"
    assert rows[4][1] == "240"
    assert rows[5][3:7] == ["0.60", "1.90", "2.10", "2.20"]
    assert [row[-1] for row in rows] == ["20 % |", " |", " |", "20 % |", "20 % |", " |"]


def test_each_load_is_shown_with_its_best_k(results: Results) -> None:
    table = student_rates_table(results, "drafting/students.json").splitlines()
    assert table[0] == "| drafter | `ar` 4 | `sd` 4 | `minedraft` 4 |"
    assert "| 4 layers |  | 230 (k = 2) | 250 (k = 1) |" in table
    assert "| none | 180 |  |  |" in table
    assert best_of([], "4 layers", "sd", 4) is None


def test_the_picture_ends_each_start_with_the_shipped_one(results: Results) -> None:
    rounds, cost, rates = students_chart(results)
    assert [(line.xs, line.ys) for line in rounds.lines] == [((4, 8, 21), (1.6, 1.8, 2.3)), ((4, 21), (1.7, 2.3))]
    assert cost.lines[0].xs == (4, 21)
    assert {line.label: line.ys for line in rates.lines} == {"minedraft 4": (250.0,), "sd 4": (230.0, 220.0)}
