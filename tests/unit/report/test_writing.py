"""Pages agree with result files: what differs is named with its line, number and file, and is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.lib.report.results import Results
from scripts.lib.report.writing import write_page

PAGE = """# A page

Of its speed it keeps 0.66, in
all 1,250 tokens/s at 8 in flight, and 0.66 once more.
<!-- numbers
a.json
  0.66: kept
  1,250: (rows | one("way", "sd")).rate
b.json
  0.66: 1 - all[0]
not measured: 8 in flight
-->

<!-- begin: both a.json -->
| kept |
| 0.66 |
<!-- end: both a.json -->
"""


def _both(results: Results, file: str) -> str:
    return f"| kept |\n| {results.load(file)['kept']:.2f} |"


def _results(root: Path, kept: float = 0.661, rate: float = 1250.2) -> Results:
    folder = root / Results.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"way": "ar", "rate": 1}, {"way": "sd", "rate": rate}]
    (folder / "a.json").write_text(json.dumps({"kept": kept, "rows": rows}))
    (folder / "b.json").write_text("[0.34]")
    return Results(root)


def _check(text: str, results: Results) -> tuple[str, list[str]]:
    written, problems = write_page(text, results, {"both": _both})
    return written, [f"{problem.line}: {problem.message}" for problem in problems]


def test_a_page_that_agrees_stays_as_it_is(tmp_path: Path) -> None:
    assert _check(PAGE, _results(tmp_path)) == (PAGE, [])


def test_a_changed_result_is_named_and_written_into_text_sources_and_table(tmp_path: Path) -> None:
    results = _results(tmp_path, kept=0.714)
    written, problems = _check(PAGE, results)
    assert problems == [
        "3: 0.66 must be 0.71 by kept of scripts/results/a.json",
        "16: 0.66 must be 0.71 by scripts/results/a.json",
    ]
    assert written == PAGE.replace("keeps 0.66", "keeps 0.71").replace("  0.66: kept", "  0.71: kept").replace(
        "| 0.66 |", "| 0.71 |"
    )
    assert _check(written, results) == (written, [])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("0.66 once more", "0.65 once more", "4: 0.65 must be 0.66 by 1 - all[0] of scripts/results/b.json"),
        ("| 0.66 |", "| 0.67 |", "16: 0.67 must be 0.66 by scripts/results/a.json"),
        ("1,250 tokens/s", "1,251 tokens/s", "4: 1,251 must be 1,250 by"),
    ],
)
def test_a_changed_number_of_a_page_is_named_and_written_back(old: str, new: str, problem: str, tmp_path: Path) -> None:
    written, problems = _check(PAGE.replace(old, new), _results(tmp_path))
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert written == PAGE


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("once more", "once more, and 12 ms", "4: 12 has no source"),
        ("# A page", "# A page with 5 ms", "1: 5 has no source"),
        ("keeps 0.66", "keeps much", "7: 0.66 has a source, but is not in the text"),
        ("at 8 in flight", "at once", "5: '8 in flight' is not in the text"),
        ("0.66: kept", "0.66: lost", "3: 0.66: lost: not in scripts/results/a.json"),
        ('"sd"', '"pearl"', "4: 1,250: (rows | one("),
        ("b.json", "c.json", "4: 0.66: scripts/results/c.json: "),
        ("begin: both a.json", "begin: bath a.json", "14: <!-- begin: bath a.json --> has no <!-- end"),
        ("both a.json", "bath a.json", "14: no part is named bath; there are both"),
        ("both a.json", "both", "14: both cannot be made"),
        ("a.json\n  0.66", "a file\n  0.66", "6: 'a file' is neither"),
    ],
)
def test_what_cannot_be_written_is_named_and_left_alone(old: str, new: str, problem: str, tmp_path: Path) -> None:
    text = PAGE.replace(old, new) if "both" in old else PAGE.replace(old, new, 1)
    written, problems = _check(text, _results(tmp_path))
    assert any(said.startswith(problem) for said in problems), problems
    assert written == text


def test_what_a_program_printed_is_checked_and_commands_are_not(tmp_path: Path) -> None:
    page = "Text.\n\n```text\n7 tokens/s\n```\n<!-- numbers\na.json\n  8: 9\n-->\n\n```\nrun -k 3\n```\n"
    _, problems = _check(page, _results(tmp_path))
    assert problems == ["4: 7 must be 9 by 9 of scripts/results/a.json"]
