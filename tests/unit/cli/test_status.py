"""The tables of `minedraft status`."""

from __future__ import annotations

import io

from rich.console import Console

from minedraft.cli.status import render
from minedraft.output import ServiceStatus, SourceState


def test_each_source_of_drafts_has_a_row() -> None:
    status = ServiceStatus("serving", sources=(SourceState("model", 10, 30, 15), SourceState("ngram", 4, 12, 9)))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(status, "unix:/x"))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["model", "10", "30", "15", "50.0%", "1.50"] in lines
    assert ["ngram", "4", "12", "9", "75.0%", "2.25"] in lines
