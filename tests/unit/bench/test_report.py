"""What a benchmark shows and writes, from runs that are made up."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import render_rows, write_report
from minedraft.bench.runner import BenchRow, BenchRun, default_configs
from minedraft.errors import ConfigError
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams

RUN = BenchRun(
    tokens_per_s=123.4, vsr=1.0, mean_accepted_len=16.0, tokens_per_round=2.0, draft_ms=120.0, verify_ms=1234.0,
    step_ms=2345.0, overlap_efficiency=0.97, control_overhead_ms=1.0, verifier_busy=1.0, drafter_busy=0.5,
    wire_bytes_per_step=600.0, first_token_s=0.2, num_output_tokens=640,
)  # fmt: skip


def rows() -> list[BenchRow]:
    return [BenchRow(config, [RUN]) for config in default_configs(16, 16)]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=300).print(render_rows(rows()))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80, lines
    assert any(line.startswith(" minedraft 16+16") for line in lines)
    assert "overlap: max(draft, verify) / step" in out.getvalue()


def test_the_file_has_machine_sampling_bound_and_every_run(tmp_path: Path) -> None:
    params = SamplingParams(max_new_tokens=64)
    write_report(tmp_path / "r.json", [(load_prompts(None)[:2], params, rows())], ServiceStatus("serving"), repeats=1)
    content = json.loads((tmp_path / "r.json").read_text())
    assert set(content) == {"machine", "workers", "repeats", "tables"}
    (table,) = content["tables"]
    assert (table["num_prompts"], table["sampling"]["max_new_tokens"]) == (2, 64)
    assert table["bound"] == pytest.approx((120 + 1234) / 1234)
    assert [row["config"]["mode"] for row in table["rows"]] == ["ar", "sd", "sd", "minedraft"]
    assert table["rows"][0]["runs"][0]["tokens_per_s"] == 123.4


def test_prompts_come_from_a_list_or_one_a_line(tmp_path: Path) -> None:
    entries = [{"prompt": "one", "kind": "chat"}, {"prompt": "two"}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, entries)))
    for name in ("list.json", "lines.jsonl"):
        assert [(prompt.kind, prompt.text) for prompt in load_prompts(tmp_path / name)] == [
            ("chat", "one"),
            ("-", "two"),
        ]


@pytest.mark.parametrize("text", ["[]", "not json", '[{"kind": "chat"}]', None])
def test_a_file_without_prompts_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match="prompts is "):
        load_prompts(tmp_path / "p.json")
