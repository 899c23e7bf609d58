"""The definitions of what `minedraft bench` measures."""

from __future__ import annotations

from minedraft.bench.metrics.registry import metrics_table
from scripts.lib.report.results import Results


def definitions_table(results: Results) -> str:
    return metrics_table()
