"""The repository's own pages agree with its result files, and stop to as soon as one of both changes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from scripts.lib.report.main import write_pages

ROOT = Path(__file__).parents[3]
FILE = "scripts/results/studies/useless.json"
pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the pages and the result files."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for folder in ("docs", "scripts/results", "scripts/drafter/results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def _pages(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / "README.md", *(root / "docs").glob("*.md"))}


def test_pages_agree_and_writing_them_changes_nothing(copy: Path) -> None:
    before = _pages(copy)
    assert write_pages(copy, is_check=True)[0] == []
    assert write_pages(copy, is_check=False)[0] == []
    assert _pages(copy) == before


def test_a_changed_result_fails_the_check_until_the_pages_are_written(copy: Path) -> None:
    content = json.loads((copy / FILE).read_text())
    content["services"]["watched"]["of_ar"] = 0.5
    (copy / FILE).write_text(json.dumps(content))
    [text, table] = write_pages(copy, is_check=True)[0]
    assert text.startswith("docs/RESULTS.md:")
    assert f"0.99 must be 0.50 by services.watched.of_ar of {FILE}" in text
    assert f"0.99 must be 0.50 by {FILE}" in table
    before = _pages(copy)
    assert write_pages(copy, is_check=False) == ([], ["docs/RESULTS.md: written"])
    assert write_pages(copy, is_check=True)[0] == []
    assert _pages(copy) != before


def test_a_changed_number_of_the_first_page_fails_the_check_and_is_written_back(copy: Path) -> None:
    page = copy / "README.md"
    before = page.read_text()
    [told] = re.findall(r"([\d.]+)x at 8", before)
    page.write_text(before.replace(f"{told}x at 8", "9.09x at 8"))
    [complaint] = write_pages(copy, is_check=True)[0]
    assert complaint.startswith("README.md:")
    assert f"9.09 must be {told} by" in complaint
    assert complaint.endswith("scripts/results/smollm2.json")
    write_pages(copy, is_check=False)
    assert page.read_text() == before


def test_a_number_without_a_source_and_a_result_that_no_page_shows_are_named(copy: Path) -> None:
    page = copy / "README.md"
    page.write_text(page.read_text() + "\nIt answers within 7 ms.\n")
    (copy / "scripts/results/new.json").write_text("{}")
    complaints, lines = write_pages(copy, is_check=True)
    assert complaints == [f"README.md:{len(page.read_text().splitlines())}: 7 has no source"]
    assert "scripts/results/new.json: no page shows it" in lines


def test_a_picture_of_other_figures_fails_the_check(copy: Path) -> None:
    file = copy / "scripts/results/modes/smollm2.json"
    content = json.loads(file.read_text())
    content["rows"][0]["tokens_per_s"]["ar"] = 10.0
    file.write_text(json.dumps(content))
    complaint = "scripts/results/pictures/modes.svg: shows other figures than scripts/results/modes/smollm2.json, "
    assert any(each.startswith(complaint) for each in write_pages(copy, is_check=True)[0])
