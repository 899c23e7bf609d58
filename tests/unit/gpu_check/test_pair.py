"""Step pair: what fails costs itself only, and the ratios are those of the benchmark's rows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from minedraft.bench.runner import BenchRow, BenchRun, default_configs
from minedraft.errors import StartFailed
from scripts.gpu.controlled.service import started
from scripts.gpu.report import Report
from scripts.gpu.step import Step
from scripts.gpu.steps.pair import Pair, rows_to_json

RUN = BenchRun({"tokens_per_s": 100.0, "draft_ms": 4.0, "verify_ms": 8.0})


async def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    pair = Pair(Step("pair", "cpu", Report(tmp_path), time.monotonic() + 60), tmp_path)
    ran = []

    async def part(found: str | StartFailed) -> None:
        ran.append(started(found))

    await pair.attempt("B", part(StartFailed("no memory")))
    await pair.attempt("C", part("unix:c.sock"))
    assert ran == ["unix:c.sock"]
    assert pair.failed == Report(tmp_path).read()["pair"]["failed"] == {"B": "StartFailed: no memory"}


def test_rows_are_compared_at_equal_m_and_at_equal_requests_in_flight() -> None:
    rows = [BenchRow(config, [RUN]) for config in default_configs(4, 4)]
    overlapped = rows[3]
    overlapped.runs = [BenchRun({**RUN.values, "tokens_per_s": 150.0})]
    rows[2].runs = [BenchRun({**RUN.values, "tokens_per_s": 200.0})]
    entry = rows_to_json(rows)[3]
    assert entry["of_sd_m"] == pytest.approx(1.5)
    assert entry["of_sd_2m"] == pytest.approx(0.75)
    assert entry["bound"] == pytest.approx(1.5)
    assert rows_to_json([]) == []
