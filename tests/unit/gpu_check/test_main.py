"""The check itself: limits, order, records, and what it carries along."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.gpu import main as check
from scripts.gpu import wheels
from scripts.gpu.report import Report
from scripts.gpu.running import Outcome
from scripts.gpu.steps.imports import _MODULES
from scripts.lib.env.pins import CONSTRAINTS, pinned


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


class Ending:
    """Stands for the running of steps, which end as they are told, each after some seconds of a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: Outcome) -> None:
        self.limits_s: list[float] = []
        self._ends = iter(ends)
        self._now_s = 100.0
        monkeypatch.setattr(check, "run_limited", self._run)
        monkeypatch.setattr(check, "time", SimpleNamespace(monotonic=lambda: self._now_s))
        monkeypatch.setattr(wheels, "find_lack", lambda environment: "")

    def _run(self, argv: list[str], limit_s: float, *others: object) -> Outcome:
        self.limits_s.append(limit_s)
        outcome = next(self._ends)
        self._now_s += outcome.seconds
        return outcome


def test_a_failed_step_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ending(monkeypatch, Outcome(1, 2.0, False, ("a", "b"), 3), Outcome(0, 3.0, False, ()))
    said: list[str] = []
    assert check.Check("cuda:0", tmp_path, said.append).run(["facts", "exact"]) == 1
    steps = Report(tmp_path).read()["steps"]
    assert [(name, found["result"]) for name, found in steps.items()] == [("facts", "exit code 1"), ("exact", "ok")]
    assert said[0].endswith(sys.executable)
    assert said[1:4] == ["facts: exit code 1, 2 s of 25, 3 processes ended that it left", "  a", "  b"]
    assert said[-1] in (tmp_path / "check.log").read_text(), "the table is in the log too"


def test_a_step_may_use_the_time_that_those_before_it_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(monkeypatch, *(Outcome(0, seconds, False, ()) for seconds in (5.0, 100.0, 1.0)))
    check.Check("cuda:0", tmp_path, lambda text: None).run(["facts", "exact", "pair"])
    assert ending.limits_s == [25, 20 + 50, 85 - 30]


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


def test_wheels_are_unpacked_onto_the_path_and_a_broken_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "FOLDER", tmp_path / "wheels")
    monkeypatch.setattr(wheels, "_PROBE", "import carried_along")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    assert wheels.find_lack(environment) == "ModuleNotFoundError: No module named 'carried_along'"
    wheels.FOLDER.mkdir()
    with zipfile.ZipFile(wheels.FOLDER / "carried_along-1.whl", "w") as wheel:
        wheel.writestr("carried_along/__init__.py", "")
    assert wheels.unpack(tmp_path / "site") == ""
    assert wheels.find_lack(environment) == ""
    (wheels.FOLDER / "x-1.whl").write_text("no archive")
    assert wheels.unpack(tmp_path / "site") == "x-1.whl: File is not a zip file"


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
