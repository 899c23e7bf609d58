"""scripts/report: writes the numbers of the pages from the result files, or checks them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from scripts.lib.report.parts import PARTS
from scripts.lib.report.results import Results
from scripts.lib.report.writing import write_page

ROOT = Path(__file__).parents[3]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a page and the result files disagree.")
def report(check: bool) -> None:
    """Write every measured number of README.md and docs/ from the JSON files of scripts/results/.

    A page keeps its sources in comments that its readers do not see; scripts/lib/report/page.py says how they look.

    \b
    Examples:
      scripts/report           after a measurement, a new setting or a new fault
      scripts/report --check   as scripts/check and continuous integration do
    """
    results = Results(ROOT)
    num_wrong = 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        written, problems = write_page(text, results, PARTS)
        for problem in problems:
            if check or not problem.can_be_written:
                num_wrong += 1
                print(f"{name}:{problem.line}: {problem.message}", file=sys.stderr)
        if not check and written != text:
            path.write_text(written, encoding="utf-8")
            print(f"{name}: written")
    if num_wrong:
        sys.exit("run scripts/report to write what has a source" if check else 1)


if __name__ == "__main__":
    report(prog_name="scripts/report")
