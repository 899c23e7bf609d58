"""The output of a comparison inside vLLM: a table, the sentences, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from minedraft.bench.report import machine_facts
from scripts.lib.peers import plot
from scripts.lib.peers.driving import Measurement
from scripts.lib.peers.summary import to_rows
from scripts.lib.vllm.comparison import Comparison, Found
from scripts.lib.vllm.counters import Counters
from scripts.lib.vllm.findings import Line, Times, median_rates, rate_of, round_times, to_lines, to_sentences
from scripts.lib.vllm.servers import Sample
from scripts.lib.vllm.ways import Way


def show(console: Console, comparison: Comparison, found: Found) -> None:
    """Print what was found so far: the tables and the sentences."""
    if found.samples:
        _show(console, comparison.title, found.samples, round_times(found.samples))
    if found.paced:
        title = f"the drafter slowed down to {comparison.paced:g} of a verify"
        _show(console, title, found.paced, found.paced_times)


def write(comparison: Comparison, found: Found, out: Path) -> None:
    """Write OUT.json and OUT.svg."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_document(comparison, found), indent=1) + "\n"
    out.with_suffix(".json").write_text(text, encoding="utf-8")
    draw(found.samples, comparison.title, out.with_suffix(".svg"))


def _show(console: Console, title: str, samples: Sequence[Sample], times: Mapping[int, Times]) -> None:
    console.print(f"\n[bold]{title}[/bold]: tokens/s while all answers are in flight, medians")
    console.print(to_table(samples, times))
    for sentence in to_sentences(samples, times):
        console.print(sentence, highlight=False, markup=False)


def to_table(samples: Sequence[Sample], times: Mapping[int, Times]) -> Table:
    """Return the table: a line for each number in flight, a column for each way, then alternating against serial."""
    rates, lines = median_rates(samples), {line.num_in_flight: line for line in to_lines(samples, times)}
    ways = [way for way in Way if any(sample.way is way for sample in samples)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for name in ("in flight", *(way.value for way in ways), "alt./serial", "bound", "blocked", "steady"):
        table.add_column(name, justify="right")
    for count in sorted({count for _, count in rates}):
        cells = [f"{rates[way, count]:.0f}" if (way, count) in rates else "-" for way in ways]
        line = lines.get(count)
        table.add_row(str(count), *cells, *(_of_line(line) if line is not None else ("-", "-", "-", "-")))
    return table


def _of_line(line: Line) -> tuple[str, str, str, str]:
    bound = "-" if line.bound is None else f"{line.bound:.2f}"
    blocked, steady = ("-" if share is None else f"{share:.1%}" for share in (line.blocked, line.blocked_steady))
    return f"{line.gain:.2f}", bound, blocked, steady


def to_document(comparison: Comparison, found: Found) -> dict[str, Any]:
    """Return what the JSON file holds."""
    return {
        "machine": machine_facts(),
        "cores": "one of the verifier; one of the drafter, the HTTP servers and the client",
        "target": comparison.pair.target.name,
        "draft": comparison.pair.draft.name if comparison.pair.draft is not None else None,
        "dtype": comparison.dtype,
        "draft_len": comparison.draft_len,
        "max_new_tokens": comparison.max_new_tokens,
        "repeats": comparison.repeats,
        "is_whole": found.is_whole,
        "failed": {way.value: " ".join(said.splitlines()[:2]) for way, said in found.failed.items()},
        "own_pace": _to_json(found.samples, round_times(found.samples)),
        "paced": {
            "drafter_takes_of_a_verify": comparison.paced,
            "draft_ms": {str(count): _rounded(1e3 * each.draft_s) for count, each in found.paced_times.items()},
            **_to_json(found.paced, found.paced_times),
        },
    }


def _to_json(samples: Sequence[Sample], times: Mapping[int, Times]) -> dict[str, Any]:
    return {
        "medians": {f"{way.value}, {count}": _rounded(rate) for (way, count), rate in median_rates(samples).items()},
        "times_ms": _times_to_json(round_times(samples)),
        "lines": [_line_to_json(line) for line in to_lines(samples, times)],
        "sentences": to_sentences(samples, times),
        "samples": [_sample_to_json(sample) for sample in samples],
    }


def _times_to_json(times: Mapping[int, Times]) -> dict[str, dict[str, float]]:
    return {
        str(count): {"draft": _rounded(1e3 * each.draft_s), "verify": _rounded(1e3 * each.verify_s)}
        for count, each in sorted(times.items())
    }


def _line_to_json(line: Line) -> dict[str, Any]:
    return {
        "in_flight": line.num_in_flight,
        "alternating_of_serial": _rounded(line.gain),
        "each": [_rounded(gain) for gain in line.gains],
        "bound": None if line.bound is None else _rounded(line.bound),
        "blocked": None if line.blocked is None else _rounded(line.blocked),
        "blocked_steady": None if line.blocked_steady is None else _rounded(line.blocked_steady),
        "acceptance": {way.value: _rounded(share) for way, share in line.acceptance.items()},
    }


def _sample_to_json(sample: Sample) -> dict[str, Any]:
    rate, share = rate_of(sample), sample.counters.acceptance
    return {
        "way": sample.way.value,
        "in_flight": sample.cell.num_in_flight,
        "repeat": sample.repeat,
        "decode_tokens_per_s": None if rate is None else _rounded(rate),
        "wall_tokens_per_s": _rounded(sample.rates.wall_tokens_per_s),
        "acceptance": None if share is None else _rounded(share),
        "counted": _steps_to_json(sample.counters),
        "steady": None if sample.steady is None else _steps_to_json(sample.steady),
    }


def _steps_to_json(counters: Counters) -> dict[str, float] | None:
    steps = counters.steps
    return None if steps is None else {name: _rounded(value) for name, value in asdict(steps).items()}


def draw(samples: Sequence[Sample], title: str, path: Path) -> None:
    """Write a picture: tokens/s of each way over requests in flight."""
    measured = [
        Measurement(sample.way.value, "one each", sample.cell, sample.repeat, sample.rates, None) for sample in samples
    ]
    plot.draw(to_rows(measured), title, path)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
