"""The tables of `minedraft status`."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from minedraft.cli.status import render
from minedraft.cli.top_view import Throughput, render_frame
from minedraft.output import ServiceStatus, SourceState, WorkerState


def test_each_source_of_drafts_has_a_row() -> None:
    status = ServiceStatus("serving", sources=(SourceState("model", 10, 30, 15), SourceState("ngram", 4, 12, 9)))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(status, "unix:/x"))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["model", "10", "30", "15", "50.0%", "1.50"] in lines
    assert ["ngram", "4", "12", "9", "75.0%", "2.25"] in lines


def test_a_service_that_loads_says_so_in_place_of_empty_tables() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    starting = ServiceStatus("starting", "sd", 3, 2)
    console.print(render(starting, "unix:/x"))
    console.print(render_frame(starting, "unix:/x", Throughput(), 80))
    status, frame = console.export_text().split("the models are loading\n")[:2]
    assert status.startswith("starting on unix:/x, mode sd")
    assert frame.startswith("MineDraft starting  mode sd")
    assert "worker" not in status + frame


def test_nothing_of_a_worker_is_cut_in_a_terminal_of_eighty_columns() -> None:
    worker = WorkerState("drafter", "ready", "smollm2-135m-instruct", "cpu:0-3", "bfloat16", num_blocks=123456)
    named = replace(worker, kernels="native avx512_bf16", carrier="shm", num_free_blocks=3, busy=1.0, step_ms=123.4)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(ServiceStatus("serving", workers=(named, replace(named, role="verifier"))), "unix:/x"))
    shown = console.export_text()
    for text in ("smollm2-135m-instruct", "cpu:0-3", "bfloat16", "native avx512_bf16", "123453/123456", "123.4 ms"):
        assert shown.count(text) == 2, shown
    assert "…" not in shown


def test_why_kernels_are_not_the_fastest_is_shown_whole_in_eighty_columns() -> None:
    worker = WorkerState("drafter", "ready", "m", "cuda:0", "bfloat16")
    sizes = "triton (graphs of up to 4 rows, no memory for 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384)"
    reason = "torch (triton kernels do not fit this model: Triton cannot build its programs here)"
    workers = replace(worker, kernels=sizes), replace(worker, role="verifier", kernels=reason)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(ServiceStatus("serving", workers=workers), "unix:/x"))
    lines = console.export_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.split()[:1] == ["worker"])
    at = lines[start].index("drafter"), lines[start].index("verifier")
    columns = " ".join(line[at[0] : at[1]] for line in lines), " ".join(line[at[1] :] for line in lines)
    assert sizes in " ".join(columns[0].split())
    assert reason in " ".join(columns[1].split())
