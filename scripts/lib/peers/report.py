"""The output of the comparison: tables that fit 80 columns, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minedraft.bench.report import machine_facts
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.peers.driving import SAME_TOKENS, Outcome, Plan
from scripts.lib.peers.engines.instructions import Instructions
from scripts.lib.peers.summary import Row, Spread, to_rows

_TITLES = {
    (CellKind.FIXED, "decode_tokens_per_s"): "decoding, tokens/s while all answers are in flight",
    (CellKind.FIXED, "wall_tokens_per_s"): "whole answers of {new} tokens, tokens/s from first request to last token",
    (CellKind.NATURAL, "wall_tokens_per_s"): "answers with their natural end (at most {new} tokens), tokens/s",
    (CellKind.FIXED, "first_token_s"): "median time to first token, ms",
}


def show(console: Console, plan: Plan, outcome: Outcome) -> None:
    """Print the tables of each set of cores, and what failed."""
    rows = to_rows(outcome.measurements)
    for cores in dict.fromkeys(row.cores for row in rows):
        ours = [row for row in rows if row.cores == cores]
        held = ", AVX2 forced" if plan.instructions is Instructions.AVX2 else ""
        word = "core" if cores.isdigit() else "cores"
        console.print(f"\n[bold]{plan.model.name}, {plan.dtype}, {word} {cores}{held}[/bold]")
        for (kind, figure), title in _TITLES.items():
            chosen = [row for row in ours if row.cell.kind is kind]
            if chosen:
                console.print(title.format(new=chosen[0].cell.max_new_tokens))
                console.print(in_flight_table(chosen, figure))
        others = [row for row in ours if row.cell.prompt_len is not None]
        if others:
            console.print("prompts of a given length, sent together")
            console.print(prompts_table(others))
    if any(row.same is not None for row in rows):
        console.print(f"Answers that begin with the same {SAME_TOKENS} tokens as the first engine's: {_same(rows)}.")
    for name, why in outcome.failures.items():
        console.print(f"[bold]{escape(name)}[/bold]: {escape(why)}", highlight=False)


def in_flight_table(rows: Sequence[Row], figure: str) -> Table:
    """Return a table of one figure: a line for each engine, a column for each number in flight."""
    counts = sorted({row.cell.num_in_flight for row in rows})
    table = _table()
    for name in ("in flight", *map(str, counts), "spread"):
        table.add_column(name, justify="left" if name == "in flight" else "right", no_wrap=True)
    for peer in dict.fromkeys(row.peer for row in rows):
        own = {row.cell.num_in_flight: row for row in rows if row.peer == peer}
        cells = [_figure(own[count], figure) if count in own else "-" for count in counts]
        shares = [row.figures[figure].share for row in own.values() if figure in row.figures]
        table.add_row(peer, *cells, f"{max(shares):.0%}" if shares else "-")
    return table


def prompts_table(rows: Sequence[Row]) -> Table:
    """Return the table of the cells with prompts of a given length."""
    table = _table()
    names = ("prompts", "engine", "prompt tok/s", "first, ms", "last first, ms", "decode tok/s")
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right", no_wrap=True)
    for cell in dict.fromkeys(row.cell for row in rows):
        for row in (row for row in rows if row.cell == cell):
            figures = ("prompt_tokens_per_s", "first_token_s", "last_first_token_s", "decode_tokens_per_s")
            shown = [_figure(row, figure) for figure in figures]
            if cell.kind is CellKind.FIRST:
                shown[-1] = "-"  # its few tokens are no decode rate
            table.add_row(f"{cell.num_in_flight} x {cell.prompt_len}", row.peer, *shown)
    return table


def to_content(
    plan: Plan, outcome: Outcome, source: str, facts: Mapping[str, Mapping[str, Any]], absent: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the JSON file holds.

    Args:
        source: of the prompts.
        facts: peer name -> versions and settings.
        absent: peer name -> why it was not run.
    """
    return {
        "machine": machine_facts(),
        "model": plan.model.name,
        "dtype": plan.dtype,
        "instructions": plan.instructions.value,
        "prompts": source,
        "engines": facts,
        "not_run": absent,
        "failed": outcome.failures,
        "repeats": plan.repeats,
        "elapsed_s": outcome.elapsed_s,
        "rows": [
            {
                "engine": row.peer,
                "cores": row.cores,
                **_cell_facts(row.cell),
                "repeats": row.num_repeats,
                "same_beginnings": row.same,
                **{name: _to_json(spread) for name, spread in row.figures.items()},
            }
            for row in to_rows(outcome.measurements)
        ],
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _cell_facts(cell: Cell) -> dict[str, Any]:
    return {
        "kind": cell.kind.value,
        "in_flight": cell.num_in_flight,
        "prompt_len": cell.prompt_len,
        "max_new_tokens": cell.max_new_tokens,
    }


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)


def _figure(row: Row, name: str) -> str:
    if name not in row.figures:
        return "-"
    value = row.figures[name].median * (1e3 if name.endswith("_s") and not name.endswith("per_s") else 1)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _same(rows: Sequence[Row]) -> str:
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row.same is not None:
            shares.setdefault(row.peer, []).append(row.same)
    return ", ".join(f"{peer} {sum(each) / len(each):.0%}" for peer, each in shares.items())


def _to_json(spread: Spread) -> dict[str, Any]:
    return {"median": _rounded(spread.median), "values": [_rounded(value) for value in spread.values]}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
