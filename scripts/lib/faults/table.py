"""The table of faults: `tests/faults/rows.py` and what was measured of them.

python -m scripts.lib.faults.table --take FILE    takes the figures of `pytest tests/faults --junitxml FILE`
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
from scripts.lib.report.results import Results
from tests.faults.case import Case
from tests.faults.rows import ROWS

ROOT = Path(__file__).parents[3]
MEASURED = "faults/matrix.json"
CHAOS = "faults/chaos.json"
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


def faults_table(results: Results) -> str:
    """Return the table with the figures of the result files."""
    return table(results.load(MEASURED)["seconds"], results.load(CHAOS)["faults"]["by_kind"])


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
    if len(sys.argv) != 3 or sys.argv[1] != "--take":
        print(__doc__, file=sys.stderr)
        return 2
    content: dict[str, Any] = {"machine": machine_facts(), "seconds": take(Path(sys.argv[2]))}
    path = ROOT / Results.FOLDER / MEASURED
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{path.relative_to(ROOT)}: written; run scripts/report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
