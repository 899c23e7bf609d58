"""Modes beside each other, of the files of `minedraft bench`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.lib.report.markdown import bold, percent, times, to_table
from scripts.lib.report.results import Results

_HEADER = (
    "mode, in flight", "tokens/s", "of `sd` m", "steady decoding, of `sd` m", "bound", "overlap efficiency",
    "verifier busy",
)  # fmt: skip


def modes_table(results: Results, file: str) -> str:
    """Return every table of a file of `minedraft bench` as one; ratios are to `sd` with as many in a batch."""
    lines = []
    for table in results.load(file)["tables"]:
        rows = table["rows"]
        base = next((row for row in rows if row["config"]["mode"] == "sd"), None)
        lines += [_line(row, base, table["bound"]) for row in rows]
    return to_table(_HEADER, lines)


def loads_table(results: Results, file: str) -> str:
    """Return tokens/s of each mode over requests in flight, and what `auto` chose."""
    rows = results.load(file)["rows"]
    header = ["in flight", *(str(row["in_flight"]) for row in rows)]
    ways = dict.fromkeys(way for row in rows for way in row["tokens_per_s"])
    lines = []
    for way in ways:
        mode, _, draft_len = way.partition(" ")
        name = bold("`auto`") if way == "auto" else f"`{mode}` {draft_len}".strip()
        shown = [_rate(row["tokens_per_s"][way]) if way in row["tokens_per_s"] else "" for row in rows]
        lines.append([name, *shown])
    shares = [_auto_of_best(row["tokens_per_s"]) for row in rows]
    lines.append(["`auto` of the best", *(f"{share:.2f}" for share in shares)])
    lines.append(["it ran", *(row["auto_mode"] for row in rows)])
    return to_table(header, lines)


def _auto_of_best(rates: Mapping[str, float]) -> float:
    return rates["auto"] / max(rate for way, rate in rates.items() if way != "auto")


def _line(row: Mapping[str, Any], base: Mapping[str, Any] | None, bound: float | None) -> list[str]:
    config, figures = row["config"], row["median"]
    mode, size = config["mode"], config["max_batch_size"]
    is_overlapped = mode == "minedraft" and not config.get("is_auto")
    name = f"auto: {mode}" if config.get("is_auto") else mode
    name = f"{name}, one device" if config.get("keeps_cores") else name
    name = f"{name}, all cores" if config.get("shares_cores") else name
    name = f"{name} {size}+{size}" if mode == "minedraft" else f"{name} {size}"
    cells = [bold(name) if is_overlapped else name, _rate(figures["tokens_per_s"])]
    has_steady = base is not None and mode != "ar"
    cells.append(times(figures["tokens_per_s"] / base["median"]["tokens_per_s"]) if base else "")
    steady = "decode_tokens_per_s"
    cells.append(times(figures[steady] / base["median"][steady]) if base and has_steady else "")
    cells.append(times(bound) if is_overlapped and bound is not None else "")
    cells.append(f"{figures['overlap_efficiency']:.2f}" if is_overlapped else "")
    return [*cells, percent(figures["verifier_busy"])]


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
