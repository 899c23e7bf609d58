"""scripts/report: writes the numbers of the pages from the result files, or checks them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from scripts.lib.report import pictures
from scripts.lib.report.charts import CHARTS
from scripts.lib.report.parts import PARTS
from scripts.lib.report.results import Results
from scripts.lib.report.writing import write_page

ROOT = Path(__file__).parents[3]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a page and the result files disagree.")
def report(check: bool) -> None:
    """Write every measured number of README.md and docs/ from the JSON files of scripts/results/, and draw charts.

    A page keeps its sources in comments that its readers do not see; scripts/lib/report/page.py says how they look.

    \b
    Examples:
      scripts/report           after a measurement, a new setting or a new fault
      scripts/report --check   as scripts/check and continuous integration do
    """
    complaints, written = write_pages(ROOT, is_check=check)
    for line in written:
        print(line)
    for line in complaints:
        print(line, file=sys.stderr)
    if complaints:
        sys.exit("write them: scripts/report, or python -m scripts.lib.report.main" if check else 1)


def write_pages(root: Path, *, is_check: bool) -> tuple[list[str], list[str]]:
    """Write or check README.md, docs/ and their pictures.

    Returns:
        what is wrong after that, each with its page, line, number and file; and what was written.
    """
    results = Results(root)
    complaints, lines = _draw_pictures(root, results, is_check=is_check)
    for path in (root / "README.md", *sorted((root / "docs").glob("**/*.md"))):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        written, problems = write_page(text, results, PARTS)
        wrong = (problem for problem in problems if is_check or not problem.can_be_written)
        complaints += [f"{name}:{problem.line}: {problem.message}" for problem in wrong]
        if not is_check and written != text:
            path.write_text(written, encoding="utf-8")
            lines.append(f"{name}: written")
    lines += [f"{name}: no page shows it" for name in results.unused()]
    return complaints, lines


def _draw_pictures(root: Path, results: Results, *, is_check: bool) -> tuple[list[str], list[str]]:
    complaints, lines = [], []
    for name, chart in CHARTS.items():
        results.pop_used()
        panels = chart(results)
        if pictures.is_of(root / name, panels):
            continue
        if is_check:
            complaints.append(f"{name}: shows other figures than {', '.join(results.pop_used())}")
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pictures.draw(root / name, panels)
            lines.append(f"{name}: drawn")
    return complaints, lines


if __name__ == "__main__":
    report(prog_name="scripts/report")
