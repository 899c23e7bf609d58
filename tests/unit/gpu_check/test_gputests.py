"""The step that runs tests/gpu: what it counts, and what is left of it where a test hangs or ends the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.gpu.steps.gputests import Counts, PytestRun

FAST = "def test_fast(): pass\n"


def run(tmp_path: Path, code: str, limit_s: float = 60.0) -> tuple[int, Counts]:
    path, counts = tmp_path / "test_it.py", Counts()
    path.write_text(code)
    return PytestRun([path], tmp_path).finish(limit_s, counts), counts


def test_results_are_counted_over_files(tmp_path: Path) -> None:
    path, counts = tmp_path / "results.xml", Counts()
    path.write_text(
        "<testsuites><testsuite>"
        '<testcase name="a"/><testcase name="b"><skipped/></testcase>'
        '<testcase name="c"><failure/></testcase><testcase name="d"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    for _ in range(2):
        counts.add(path)
    assert (counts.passed, counts.skipped, counts.failed) == (2, 2, ["c", "d", "c", "d"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "exit_code", "failed"),
    [
        ("", 0, []),
        ("def test_wrong(): assert False", 1, ["test_wrong"]),
        ("import os\ndef test_crash(): os._exit(9)", 9, ["test_it ended with exit code 9"]),
    ],
)
def test_a_failure_is_told_by_its_name_and_a_crash_by_its_file(
    code: str, exit_code: int, failed: list[str], tmp_path: Path
) -> None:
    found, counts = run(tmp_path, FAST + code)
    assert (found, counts.failed) == (exit_code, failed)
    assert counts.passed == (0 if exit_code == 9 else 1)


@pytest.mark.slow
def test_what_does_not_end_is_interrupted_and_tells_what_it_has_found(tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    hangs = f"import pathlib, time\ndef test_hangs():\n    pathlib.Path({str(mark)!r}).touch()\n    time.sleep(600)"
    path, counts = tmp_path / "test_it.py", Counts()
    path.write_text(FAST + hangs)
    tests = PytestRun([path], tmp_path)
    while not mark.exists():
        pass
    assert tests.finish(0.0, counts) == 2
    assert counts.passed == 1
    assert counts.failed == ["test_it ended with exit code 2"]
    assert "1 passed" in tests.output
