"""The check itself: limits, order, records; with steps that fail, hang and print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest

from scripts.gpu import main as check
from scripts.gpu import wheels
from scripts.gpu.report import Report
from scripts.gpu.steps.gputests import count_results
from scripts.gpu.steps.imports import _MODULES
from scripts.lib.env.pins import CONSTRAINTS, pinned
from tests.support.processes import is_gone, until


def run(tmp_path: Path, code: str, limit_s: float = 20.0) -> check.Outcome:
    log = tmp_path / "log"
    log.write_text("before\n")
    outcome = check.run_limited([sys.executable, "-c", code], limit_s, dict(os.environ), log)
    assert log.read_text().startswith("before\n")
    return outcome


def test_a_step_that_ends_well_is_ok(tmp_path: Path) -> None:
    outcome = run(tmp_path, "print('one'); print('two')")
    assert (outcome.word, outcome.tail) == ("ok", ("one", "two"))


def test_a_failure_is_told_by_its_exit_code_and_last_lines(tmp_path: Path) -> None:
    outcome = run(tmp_path, "import sys; print('x'); sys.exit(3)")
    assert (outcome.word, outcome.tail) == ("exit code 3", ("x",))


def test_a_step_beyond_its_limit_is_ended_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    outcome = run(tmp_path, code, limit_s=0.5)
    assert outcome.word == "timed out"
    child = int(outcome.tail[0])
    if psutil.pid_exists(child):
        until(lambda: is_gone(psutil.Process(child)), 5, "the child of the step ends")


def test_the_limits_are_six_minutes_and_every_step_has_one() -> None:
    assert sum(check.LIMITS_S.values()) == check.TOTAL_S == 360
    folder = Path(check.__file__).parent / "steps"
    assert all((folder / f"{name}.py").exists() for name in check.LIMITS_S if name != "summary")


def test_named_steps_run_in_the_order_of_the_check() -> None:
    assert check.chosen_steps("pair exact") == ["exact", "pair"]
    assert check.chosen_steps("") == list(check.LIMITS_S)
    with pytest.raises(SystemExit, match="there is no step ipc"):
        check.chosen_steps("facts ipc")


def test_an_entry_is_kept_when_the_next_is_written(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.put("exact", "llama", {"equal": 1})
    report.put("exact", "qwen2", 2)
    report.put("pair", "B", 3)
    report.drop("pair")
    assert Report(tmp_path).read() == {"exact": {"llama": {"equal": 1}, "qwen2": 2}}


def test_a_failed_step_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = iter([check.Outcome(1, 2.0, False, ("a", "b")), check.Outcome(0, 3.0, False, ())])
    monkeypatch.setattr(check, "run_limited", lambda *arguments: next(ended))
    monkeypatch.setattr(wheels, "are_needed", lambda environment: False)
    said: list[str] = []
    assert check.Check("cuda:0", tmp_path, said.append).run(["facts", "exact"]) == 1
    steps = Report(tmp_path).read()["steps"]
    assert [(name, found["result"]) for name, found in steps.items()] == [("facts", "exit code 1"), ("exact", "ok")]
    assert said[:3] == ["facts: exit code 1, 2 s of 20", "  a", "  b"]
    assert said[-1] in (tmp_path / "check.log").read_text(), "the table is in the log too"


def test_what_lacks_is_pinned_as_the_tests_have_it() -> None:
    pins = pinned(wheels.PACKAGES, CONSTRAINTS.read_text())
    assert len(pins) == len(wheels.PACKAGES)
    assert all("==" in pin for pin in pins)
    with pytest.raises(LookupError, match="protobuf"):
        pinned(wheels.PACKAGES, "grpcio==1.0")


def test_what_the_machine_has_is_not_fetched_and_a_wrong_name_is_refused() -> None:
    assert wheels.to_fetch([]) == list(wheels.PACKAGES)
    assert set(wheels.PACKAGES) - set(wheels.to_fetch(["uvloop", "protobuf"])) == {"uvloop", "protobuf"}
    with pytest.raises(SystemExit, match="'torch' is none of protobuf, grpcio"):
        wheels.to_fetch(["uvloop", "torch"])


def test_without_wheels_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "FOLDER", tmp_path)
    assert "--prepare" in wheels.unpack(tmp_path / "site")


def test_results_of_the_gpu_tests_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "results.xml"
    path.write_text(
        "<testsuites><testsuite>"
        '<testcase name="a"/><testcase name="b"><skipped/></testcase>'
        '<testcase name="c"><failure/></testcase><testcase name="d"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    assert count_results(path) == {"passed": 1, "skipped": 1, "failed": ["c", "d"]}


# Which a machine with torch and transformers for CUDA has.
_THERE = {"torch", "transformers", "safetensors", "tokenizers", "numpy", "jinja2", "typing-extensions", "click", "rich"}
_LIST_IMPORTED = """
import importlib, sys
from importlib.metadata import packages_distributions
for name in sys.argv[1:]:
    importlib.import_module(name)
owners = packages_distributions()
print(*{owner for name in sys.modules for owner in owners.get(name, ())})
"""


def test_every_dependency_that_the_check_imports_is_there_or_carried_along() -> None:
    """One that is not ends every step that starts a worker."""
    project = tomllib.loads((wheels.ROOT / "pyproject.toml").read_text())["project"]
    ours = {_plain(re.split(r"[<>=]", line)[0]) for line in project["dependencies"]}
    steps = [f"scripts.gpu.steps.{name}" for name in check.LIMITS_S if name != "summary"]
    command = [sys.executable, "-c", _LIST_IMPORTED, *steps, *_MODULES, "minedraft.local", "minedraft.process.serving"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {_plain(name) for name in done.stdout.split()}
    assert {"grpcio", "llguidance", "uvloop"} < imported & ours
    assert imported & ours <= _THERE | set(map(_plain, wheels.PACKAGES))


def _plain(package: str) -> str:
    return package.lower().replace("_", "-")
