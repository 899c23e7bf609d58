"""What a person types is executable, has no ending, runs from any folder and teaches with --help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = sorted(
    path
    for folder in (
        SCRIPTS,
        SCRIPTS / "forecast",
        *(SCRIPTS / "bench" / name for name in ("", "doors", "network", "studies")),
    )
    for path in folder.iterdir()
    if not path.suffix
)
COMMANDS = [path for path in COMMANDS if path.is_file()]
HELPERS = {SCRIPTS / "lib" / "run", SCRIPTS / "lib" / "help"}


def test_what_is_executable_is_a_command_and_all_else_is_in_folders() -> None:
    executable = {path for path in SCRIPTS.rglob("*") if path.is_file() and os.access(path, os.X_OK)}
    assert executable == {*COMMANDS, *HELPERS}
    rest = {path.name for path in SCRIPTS.iterdir() if path.is_file()} - {path.name for path in COMMANDS}
    assert rest == {"__init__.py"}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.name)
def test_help_teaches_in_any_folder(command: Path, tmp_path: Path) -> None:
    name = f"scripts/{command.relative_to(SCRIPTS)}"
    (tmp_path / "uuid.py").write_text("raise SystemExit('ran a file of the current folder')")
    environment = os.environ | {"MINEDRAFT_PYTHON": sys.executable}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    assert len(done.stdout.splitlines()) >= 3
