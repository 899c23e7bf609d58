"""Keeps the README's table of faults equal to `tests/faults/rows.py` and to what was measured.

python -m scripts.lib.faults.table                writes the table between the two markers
python -m scripts.lib.faults.table --check        only checks that it is up to date
python -m scripts.lib.faults.table --take FILE    takes the figures of `pytest tests/faults --junitxml FILE` first
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from minedraft.bench.report import machine_facts
from tests.faults.case import Case
from tests.faults.rows import ROWS

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
MEASURED = ROOT / "scripts/results/faults/matrix.json"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
CHAOS = ROOT / "scripts/results/faults/chaos.json"
MATRIX = "tests/faults/test_matrix.py"

_SAID = {"noticed_s": "noticed", "back_s": "back"}
_IN_CHAOS = {
    1: ("drafter killed",),
    2: ("verifier killed",),
    4: ("scheduler killed",),
    6: ("drafter stopped for good", "verifier stopped for good"),
    12: ("client with 16 streams killed",),
}
"""The kinds of faults in the report of chaos, by row."""

Figures = Mapping[str, Mapping[str, float]]


def table(measured: Figures, chaos: Mapping[str, Any]) -> str:
    """Return the table: a line for each row. `measured`: seconds by the name of a live case. `chaos`: figures by the
    kind of fault."""
    lines = ["| row | fault | what a client sees | bound | measured | shown by |", "|---|---|---|---|---|---|"]
    for case in ROWS:
        cells = (str(case.row), case.fault, case.client, case.bound, _figures(case, measured, chaos), _places(case))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(case: Case, measured: Figures, chaos: Mapping[str, Any]) -> str:
    """Return the longest times of a row's live cases, and the median and longest ones under chaos."""
    found = [measured[name] for live in case.live if (name := f"{case.row}-{live}") in measured]
    longest = {key: max(times[key] for times in found if key in times) for key in _SAID if any(key in t for t in found)}
    said = [", ".join(f"{_SAID[key]} after {seconds:.1f} s" for key, seconds in longest.items())] if longest else []
    for kind in (kind for kind in _IN_CHAOS.get(case.row, ()) if kind in chaos):
        times, count = chaos[kind]["back_s"], chaos[kind]["count"]
        said.append(f"in chaos {count} x {kind}: back after {times['p50']:.0f} s (most {times['max']:.0f})")
    return "; ".join(said)


def _places(case: Case) -> str:
    """Return the files with the row's tests, and why a part of it is not run."""
    files = [*([MATRIX] if case.live else []), *(node.partition("::")[0] for node in case.proofs)]
    names = ", ".join(f"`{name.removeprefix('tests/')}`" for name in dict.fromkeys(files))
    return f"{names}; skipped: {case.skipped}" if case.skipped else names


def take(report: Path) -> dict[str, dict[str, float]]:
    """Return what the live cases have measured, from pytest's report.

    Raises:
        ValueError: a test has failed, or none has measured anything.
    """
    measured: dict[str, dict[str, float]] = {}
    for test in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - see above
        if test.find("failure") is not None or test.find("error") is not None:
            raise ValueError(f"{test.get('name')} has failed")
        name = re.search(r"\[(.*)\]", test.get("name", ""))
        found = {str(p.get("name")): float(p.get("value", "nan")) for p in test.iter("property")}
        if name is not None and found:
            measured[name[1]] = found
    if not measured:
        raise ValueError(f"{report} has no figures")
    return measured


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--take"]:
        content: dict[str, Any] = {"machine": machine_facts(), "seconds": take(Path(arguments[1]))}
        MEASURED.parent.mkdir(exist_ok=True)
        MEASURED.write_text(json.dumps(content, indent=1) + "\n")
    text = README.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"{README.name} has no {BEGIN} ... {END}", file=sys.stderr)
        return 1
    measured = json.loads(MEASURED.read_text())["seconds"] if MEASURED.exists() else {}
    chaos = json.loads(CHAOS.read_text())["faults"]["by_kind"]
    current = f"{head}{BEGIN}\n{table(measured, chaos)}\n{END}{tail}"
    if "--check" in arguments:
        if current != text:
            what = "the table of faults is out of date; run python -m scripts.lib.faults.table"
            print(f"README.md: {what}", file=sys.stderr)
        return int(current != text)
    README.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
