"""What a benchmark shows and writes, from runs that are made up."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from minedraft.bench.measured import read_rows
from minedraft.bench.metrics.record import AnswerRecord, RequestRecord, RunRecord, ServiceCounts, SteadyRounds
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import render_latencies, render_rows, with_runs, write_report
from minedraft.bench.runner import BenchConfig, BenchRow, BenchRun, BenchTable, default_configs
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode

# Of the result of `vllm bench serve` 0.33 with --save-detailed, without what our client has no such thing for.
VLLM_KEYS = {
    "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
    "request_goodput", "output_throughput", "total_token_throughput", "input_lens", "output_lens", "ttfts", "itls",
    "date", "backend", "endpoint_type", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
    "burstiness", "max_concurrency", "latencies", "start_times", "errors", "max_concurrent_requests",
    "spec_decode_acceptance_rate", "spec_decode_acceptance_length", "spec_decode_num_drafts",
    "spec_decode_draft_tokens", "spec_decode_accepted_tokens", "spec_decode_per_position_acceptance_rates",
    *(f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
}  # fmt: skip
RECORD = RunRecord(
    (RequestRecord(0.0, 92.0, 30, (AnswerRecord(((0.5, 1), (1.0, 3), (92.0, 4)), 3),)),),
    duration_s=2.0,
    counts=ServiceCounts(4, 2400, 0, 1.0, 7, 0.1, 1.2, 0.6, 0.4, {(16, 16): 1, (16, 3): 2}),
    steady=SteadyRounds(120.0, 1234.0, 2345.0, 0.97, 1.0),
    max_batch_size=16,
    num_devices=2,
)
RUN = BenchRun.of(RECORD)


def table(*runs: BenchRun) -> BenchTable:
    rows = [BenchRow(config, list(runs)) for config in default_configs(16, 16)]
    return BenchTable(load_prompts(None)[:2], SamplingParams(max_new_tokens=64), rows)


def rows() -> list[BenchRow]:
    return table(RUN).rows


@pytest.mark.parametrize("render", [render_rows, render_latencies])
def test_the_tables_fit_a_terminal_of_80_columns(render: Callable[[Sequence[BenchRow]], Table]) -> None:
    out = io.StringIO()
    alone = BenchRow(BenchConfig(Mode.AR, 32, 0, keeps_cores=True), [RUN])
    Console(file=out, width=300).print(render([alone, *rows()]))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80, lines
    assert any(line.startswith(" minedraft 16+16") for line in lines)
    assert any(line.startswith(" ar, 1 device 32") for line in lines)
    assert "…" not in out.getvalue()


def test_the_words_of_the_comparison_are_explained_below_it() -> None:
    words = " ".join(str(render_rows(rows()).caption).split())
    for word in ("requests in flight", "k, the drafts of a request in a round, is 16", "VSR: share of drafts accepted"):
        assert word in words
    assert re.search(r"minedraft: step \d+ ms, taking turns \d+ ms: [\d.]+x, at most [\d.]+x\.$", words)


def test_the_file_has_machine_sampling_bound_and_every_run(tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", [table(RUN, RUN)], ServiceStatus("serving"), repeats=2)
    content = json.loads((tmp_path / "r.json").read_text())
    assert set(content) == {"machine", "workers", "repeats", "traffic", "tables"}
    (only,) = content["tables"]
    assert (only["num_prompts"], only["sampling"]["max_new_tokens"], only["kinds"]) == (2, 64, {"chat": 1, "code": 1})
    assert only["bound"] == pytest.approx((120 + 1234) / 1234)
    assert [row["config"]["mode"] for row in only["rows"]] == ["ar", "sd", "sd", "minedraft"]
    first = only["rows"][0]
    assert len(first["runs"]) == 2
    assert first["runs"][0]["output_throughput"] == first["runs"][0]["minedraft"]["tokens_per_s"] == 4.0
    assert first["median"]["tokens_per_s"] == first["vllm_median"]["output_throughput"] == 4.0
    assert first["median"]["accepted_len_histogram"] == [0, 0, 0, 2, *[0] * 12, 1]
    assert first["runs"][0]["input_lens"] == [30]
    assert "ttfts" not in first["runs"][0], "only with --save-detailed"


def test_a_benchmark_of_one_run_has_the_keys_of_vllm_at_the_top(tmp_path: Path) -> None:
    one = table(BenchRun.of(RECORD, is_detailed=True))
    one.rows = one.rows[:1]
    write_report(tmp_path / "r.json", [one], ServiceStatus("serving"), repeats=1)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content.keys() >= VLLM_KEYS
    assert content["minedraft"]["vsr"] == pytest.approx(22 / 48)
    assert content["ttfts"] == [0.5]


def test_the_file_can_be_predicted_from(tmp_path: Path) -> None:
    measured = table(RUN, RUN)
    measured.rows.insert(0, BenchRow(BenchConfig(Mode.AR, 32, 0, keeps_cores=True), [RUN]))
    write_report(tmp_path / "r.json", [measured], ServiceStatus("serving"), repeats=2)
    rows = read_rows(tmp_path / "r.json")
    assert [row.label for row in rows] == ["ar 32", "sd 16", "sd 32", "minedraft 16+16"], "ar on both devices only"
    assert rows[0].run_tokens_per_s == (RUN.values["tokens_per_s"],) * 2
    assert (rows[1].num_requests, rows[1].output_len) == (2, 64)


def test_rows_that_were_not_reached_are_left_out(tmp_path: Path) -> None:
    reached, not_reached = table(RUN), table()
    reached.rows[3].runs = []
    (kept,) = with_runs([reached, not_reached])
    assert [row.config.mode for row in kept.rows] == [Mode.AR, Mode.SD, Mode.SD]
