"""The pictures of the pages that `scripts/report` draws, and what each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from scripts.lib.report.pictures import Line, Panel
from scripts.lib.report.results import Json, Results
from scripts.lib.report.tables.context import context_chart
from scripts.lib.report.tables.drafters import students_chart


def modes_chart(results: Results) -> Sequence[Panel]:
    """Return tokens/s of each mode over requests in flight, for a small and a larger target."""
    files = {
        "modes/smollm2.json": "SmolLM2 135M, with its draft model",
        "modes/qwen.json": "Qwen2.5-Coder 1.5B, with 0.5B",
    }
    panels = []
    for file, title in files.items():
        rows = results.load(file)["rows"]
        ways = dict.fromkeys(way for row in rows for way in row["tokens_per_s"])
        lines = []
        for way in sorted(ways):  # the same colour in each panel
            rates = [(row["in_flight"], row["tokens_per_s"][way]) for row in rows if way in row["tokens_per_s"]]
            lines.append(_line(way, [(num, round(rate, 1)) for num, rate in rates]))
        panels.append(Panel(title, "requests in flight", "tokens/s", tuple(lines)))
    return panels


def gains_chart(results: Results) -> Sequence[Panel]:
    """Return what overlapping gains over taking turns, at equal batches and at equal requests in flight."""
    files = {"smollm2.json": "SmolLM2 with a draft model", "studies/head.json": "with a head", "qwen.json": "Qwen 1.5B"}
    panels = []
    for file, title in files.items():
        tables = results.load(file)["tables"]
        lines = (
            _line("of sd, as many a batch", [_gain(table, 1) for table in tables]),
            _line("of sd, as many in flight", [_gain(table, 2) for table in tables]),
        )
        panels.append(Panel(title, "requests in flight", "minedraft's tokens/s", lines, y_level=1.0))
    return panels


def _gain(table: Json, batches: int) -> tuple[int, float]:
    """Return requests in flight, and tokens/s of `minedraft` over those of `sd` with `batches` times its batch."""
    rows = {(row["config"]["mode"], row["config"]["max_batch_size"]): row for row in table["rows"]}
    [size] = [size for mode, size in rows if mode == "minedraft"]
    overlapped, turns = rows["minedraft", size]["median"], rows["sd", batches * size]["median"]
    return 2 * size, round(overlapped["tokens_per_s"] / turns["tokens_per_s"], 3)


def _line(label: str, points: Sequence[tuple[float, float]]) -> Line:
    return Line(label, tuple(x for x, _ in points), tuple(y for _, y in points))


CHARTS: Mapping[str, Callable[[Results], Sequence[Panel]]] = {
    "scripts/results/pictures/modes.svg": modes_chart,
    "scripts/results/pictures/gains.svg": gains_chart,
    "scripts/results/pictures/context.svg": context_chart,
    "scripts/results/pictures/students.svg": students_chart,
}
