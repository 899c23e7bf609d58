"""The study of long prompts: their lengths, and what its table says of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minedraft.text.tokenizer import Tokenizer
from scripts.lib.report.results import Results
from scripts.lib.report.tables.context import context_chart, context_table, length_lines
from scripts.lib.studies.context import long_prompts
from tests.support.tiny_models import write_tiny_tokenizer


@pytest.mark.parametrize("num_tokens", [64, 500])
def test_prompts_are_as_long_as_asked_and_have_nothing_in_common(tmp_path: Path, num_tokens: int) -> None:
    write_tiny_tokenizer(tmp_path, vocab_size=300, eos=None)
    tokenizer = Tokenizer.load(tmp_path)
    prompts = long_prompts(tokenizer, num_tokens, 3)
    lens = [len(tokenizer.encode_chat([{"role": "user", "content": prompt.text}])) for prompt in prompts]
    assert all(abs(length - num_tokens) <= 0.05 * num_tokens for length in lens), lens
    assert len({prompt.text[:40] for prompt in prompts}) == 3


def row(mode: str, size: int, rate: float, keeps_cores: bool = False) -> dict[str, Any]:
    config = {"mode": mode, "num_in_flight": size * (2 if mode == "minedraft" else 1), "keeps_cores": keeps_cores}
    return {"config": config, "runs": [[30.0, 40.0, rate]]}


def test_a_line_compares_modes_at_equal_requests_in_flight(tmp_path: Path) -> None:
    rows = [row("ar", 4, 50.0, True), row("ar", 4, 60.0), row("sd", 2, 70.0), row("sd", 4, 80.0)]
    table = {"pair": "smollm2", "size": 2, "rows": [*rows, row("minedraft", 2, 100.0)]}
    tables = [{**table, "kind": "1024"}, {**table, "kind": "256"}]
    content = {"metrics": ["draft_ms", "verify_ms", "decode_tokens_per_s"], "tables": tables}
    interrupted = {**table, "kind": "4096", "rows": rows}
    first, second = length_lines({**content, "tables": [*tables, interrupted]})
    assert (first.prompt_len, second.prompt_len) == (256, 1024)
    assert (first.in_flight, first.draft_ms, first.verify_ms) == (4, 30.0, 40.0)
    assert first.rates == {"ar": 60.0, "sd": 80.0, "minedraft": 100.0}
    (tmp_path / Results.FOLDER / "studies").mkdir(parents=True)
    (tmp_path / Results.FOLDER / "studies" / "context.json").write_text(json.dumps(content))
    shown = context_table(Results(tmp_path), "studies/context.json").splitlines()[2]
    assert shown == "| smollm2, 256, 4 | 30.0 | 40.0 | 60.0 | 80.0 | 100.0 | **1.25x** | **1.67x** |"
    times, gains = context_chart(Results(tmp_path))
    assert [line.ys for line in times.lines] == [(30.0, 30.0), (40.0, 40.0)]
    assert [(line.xs, line.ys) for line in gains.lines] == [((256, 1024), (1.25, 1.25))]
