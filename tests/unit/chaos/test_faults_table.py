"""The README's table of faults: its figures come from pytest's report, and only from one without a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lib.faults.table import table, take
from tests.faults.rows import ROWS

REPORT = """<testsuites><testsuite><testcase name="test_a[1-drafter-kill-in_draft]"><properties>
<property name="noticed_s" value="0.05"/><property name="back_s" value="4.25"/></properties>{more}</testcase>
</testsuite></testsuites>"""


def test_figures_are_those_of_the_tests(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT.format(more=""))
    measured = take(tmp_path / "report.xml")
    assert measured == {"1-drafter-kill-in_draft": {"noticed_s": 0.05, "back_s": 4.25}}
    chaos = {"drafter killed": {"count": 3, "back_s": {"p50": 5.0, "max": 9.0}}}
    lines = table(measured, chaos).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert "| noticed after 0.1 s, back after 4.2 s; in chaos 3 x drafter killed: back after 5 s (most 9) |" in lines[2]


@pytest.mark.parametrize("more", ["<failure/>", "<error/>"])
def test_no_figures_are_taken_from_tests_that_failed(tmp_path: Path, more: str) -> None:
    (tmp_path / "report.xml").write_text(REPORT.format(more=more))
    with pytest.raises(ValueError, match="drafter-kill"):
        take(tmp_path / "report.xml")
