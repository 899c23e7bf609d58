"""The tables of the paper's matrix, on figures that are computed by hand: medians over the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.lib.report.results import Results
from scripts.lib.report.tables.matrix import matrix_axis_table, matrix_kinds_table

FILE = "matrix.json"


def _row(mode: str, size: int, rate: float, draft_len: int = 0, **more: bool) -> dict[str, Any]:
    config = {"mode": mode, "max_batch_size": size, "draft_len": draft_len, **more}
    return {"config": config, "runs": [[0.0, rate / 2], [0.0, rate], [0.0, rate * 9]]}


def _results(root: Path) -> Results:
    names = ("pair", "kind", "size", "samples", "temperature")
    tables, done = [], []
    for kind, scale in (("chat", 1.0), ("code", 3.0)):
        rows = [_row("ar", 8, 200 * scale, keeps_cores=True), _row("ar", 8, 400 * scale, keeps_cores=False)]
        for draft_len, overlapped in ((1, 120), (2, 150)):
            rows += [_row("sd", 4, 100 * scale, draft_len), _row("minedraft", 4, overlapped * scale, draft_len)]
            rows += [_row("sd", 8, 160 * scale, draft_len)] if draft_len == 2 else []
            done.append(
                {"pair": "a", "kind": kind, "size": 4, "samples": 1, "temperature": 0.0, "draft_len": draft_len}
            )
        tables.append(dict(zip(names, ("a", kind, 4, 1, 0.0), strict=True)) | {"rows": rows})
    content = {"metrics": ["seconds", "tokens_per_s"], "tables": tables, "done": done}
    (root / Results.FOLDER).mkdir(parents=True)
    (root / Results.FOLDER / FILE).write_text(json.dumps(content))
    return Results(root)


def test_an_axis_is_shown_by_medians_over_kinds_and_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    lines = matrix_axis_table(_results(tmp_path), FILE, "draft_len").splitlines()
    assert lines[2:] == [
        "| a, k = 1 | 400 | 800 | 200 |  | 240 | **1.20x** |  | 0.30x |",
        "| a, k = 2 | 400 | 800 | 200 | 320 | 300 | **1.50x** | 0.94x | 0.38x |",
    ]


def test_the_base_is_shown_by_kind(tmp_path: Path) -> None:
    lines = matrix_kinds_table(_results(tmp_path), FILE).splitlines()
    assert lines[2:] == [
        "| a, chat | 200 | 400 | 100 | 160 | 150 | **1.50x** | 0.94x | 0.38x |",
        "| a, code | 600 | 1200 | 300 | 480 | 450 | **1.50x** | 0.94x | 0.38x |",
    ]
