"""The tables of the comparison with other engines, on figures that are computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.lib.report.results import Results
from scripts.lib.report.tables.peers import decoding_table, formats_table

FILE = "peers.json"


def _row(engine: str, count: int, rate: float, kind: str = "fixed") -> dict[str, Any]:
    return {"engine": engine, "kind": kind, "in_flight": count, "decode_tokens_per_s": {"median": rate}}


def test_each_engine_counts_in_its_better_format(tmp_path: Path) -> None:
    rows = [
        *(_row("minedraft ar bfloat16", count, rate) for count, rate in ((4, 30.0), (8, 120.0))),
        *(_row("minedraft ar float32", count, rate) for count, rate in ((4, 60.0), (8, 100.0))),
        *(_row("llama.cpp bfloat16", count, rate) for count, rate in ((4, 19.5), (8, 25.0))),
        *(_row("llama.cpp float32", count, rate) for count, rate in ((4, 40.0), (8, 30.0))),
        _row("vllm float32", 8, 60.0),  # it failed with four
        _row("llama.cpp float32", 8, 999.0, kind="natural"),
    ]
    names = dict.fromkeys(row["engine"] for row in rows)
    content = {"engines": {name: {"version": "1.2.3"} for name in names}, "rows": rows}
    (tmp_path / Results.FOLDER).mkdir(parents=True)
    (tmp_path / Results.FOLDER / FILE).write_text(json.dumps(content))
    assert formats_table(Results(tmp_path), FILE).splitlines() == [
        "| tokens/s, in flight | 4 | 8 |",
        "| --- | --: | --: |",
        "| **ours, `ar`**, bfloat16 | 30 | 120 |",
        "| **ours, `ar`**, float32 | 60 | 100 |",
        "| llama.cpp 1.2.3, bfloat16 | 19.5 | 25 |",
        "| llama.cpp 1.2.3, float32 | 40 | 30 |",
        "| vLLM 1.2 (CPU), float32 |  | 60 |",
        "| ours of the best other | 1.50x | 2.00x |",
    ]


def test_ours_alone_is_compared_over_cores(tmp_path: Path) -> None:
    rates = {"0": {1: 50.0, 8: 300.0}, "0-1": {1: 90.0, 8: 450.0}}
    rows = [
        _row("minedraft ar", count, rate) | {"cores": cores, "prompt_len": None}
        for cores, own in rates.items()
        for count, rate in own.items()
    ]
    (tmp_path / Results.FOLDER).mkdir(parents=True)
    content = {"engines": {"minedraft ar": {"version": "1.2.3"}}, "rows": rows}
    (tmp_path / Results.FOLDER / FILE).write_text(json.dumps(content))
    assert decoding_table(Results(tmp_path), FILE).splitlines()[2:] == [
        "| **ours, `ar`**, one core | 50 | 300 |",
        "| **ours, `ar`**, two cores | 90 | 450 |",
        "| two cores of one | 1.80x | 1.50x |",
    ]
