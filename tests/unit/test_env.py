"""What scripts/env shows while it makes an environment: a line or two, and why pip failed if it did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_PACKAGES = 70
# In the place of a Python whose pip takes no time: what it does not know, the real one does.
PYTHON = f"""#!/bin/bash
case "$*" in
*"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*"-m pip"*)
    for i in $(seq {NUM_PACKAGES // 2}); do
        echo "Collecting package-$i"
        echo "  Downloading package_$i-1.0-py3-none-any.whl"
    done
    [ -z "$PIP_FAILS" ] || {{ echo "ERROR: no space left on device"; exit 2; }}
    echo "Successfully installed $(seq -s ' ' -f 'package-%g' {NUM_PACKAGES // 2})"
    ;;
*native.build*) ;;
*) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("scripts/env", "scripts/lib/env/constraints.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make_env(checkout: Path, extras: str = "convert", **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": str(checkout / "python"), "PIP_FAILS": ""}
    environment |= {name: str(value) for name, value in options.items() if name == "PIP_FAILS"}
    return subprocess.run(
        [checkout / "scripts" / "env", extras], env=environment, cwd="/", capture_output=True, text=True, timeout=60
    )


def test_it_says_in_few_lines_what_it_installs_and_nothing_once_that_is_there(checkout: Path) -> None:
    done = make_env(checkout)
    assert done.returncode == 0, done.stderr
    making, installing, installed, building = done.stdout.splitlines()
    assert making.startswith("making .venv with Python 3.")
    assert "minedraft[convert], about 60 packages: some minutes at the first time; log: .venv/pip.log" in installing
    assert installed.startswith(f"packages installed: {NUM_PACKAGES}, in ")
    assert building == "building the native kernels"
    assert "Downloading package_35-1.0" in (checkout / ".venv" / "pip.log").read_text()
    again = make_env(checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    more = make_env(checkout, "dev")
    assert "minedraft[convert,dev], about 100 packages" in more.stdout, "extras installed before stay"


def test_the_end_of_pip_s_output_is_shown_if_it_fails_and_the_next_start_tries_again(checkout: Path) -> None:
    failed = make_env(checkout, PIP_FAILS="yes")
    assert failed.returncode == 1
    assert failed.stderr.startswith("scripts/env: pip failed; its output is in .venv/pip.log, which ends with\n")
    assert failed.stderr.endswith("    ERROR: no space left on device\n")
    assert len(failed.stderr.splitlines()) < 20
    assert make_env(checkout).returncode == 0


def test_what_is_missing_here_is_no_wrong_configuration_of_a_service(checkout: Path) -> None:
    """78 is for the settings of services, which a supervisor then does not start again."""
    (checkout / "python").write_text("#!/bin/bash\nexit 1\n")
    too_old = make_env(checkout)
    assert (too_old.returncode, "Python 3.11 or newer is required" in too_old.stderr) == (1, True)
    (checkout / ".venv").symlink_to(checkout / "elsewhere")
    linked = make_env(checkout)
    assert (linked.returncode, "is a link to another checkout's environment" in linked.stderr) == (1, True)


def test_a_terminal_sees_the_number_of_packages_grow(checkout: Path) -> None:
    reader, terminal = os.openpty()
    environment = os.environ | {"PYTHON": str(checkout / "python"), "PIP_FAILS": ""}
    with subprocess.Popen([checkout / "scripts" / "env"], env=environment, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(reader, 65536)
            except OSError:  # the terminal's last user is gone
                break
    os.close(reader)
    assert process.returncode == 0, shown
    assert b"\r  1 so far " in shown
    assert f"\r  {NUM_PACKAGES} so far ".encode() in shown
    assert b"package" not in shown.replace(b"packages", b"")
