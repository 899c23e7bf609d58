"""The unit files as they are installed: read by systemd's own tools where they are, and checked key by key."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minedraft.process.entry import EXIT_USAGE
from scripts.systemd.install import SYSTEM_UNITS

ROOT = Path(__file__).parents[3]
PROGRAMS = ("minedraft-launch", "minedraft-scheduler", "minedraft-worker")
# Directives of systemd 254, which an older one ignores with a warning.
NEWER = re.compile(r"Unknown key '(RestartSteps|RestartMaxDelaySec)' in section \[Service\], ignoring")
MOST_EXPOSED = 1.7  # of 10; measured with systemd 252: 1.6, and 1.4 for the workers
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def run_install(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "scripts.systemd.install", *arguments],
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    for name in PROGRAMS:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory, programs) -> Path:
    destdir = tmp_path_factory.mktemp("root")
    done = run_install("--destdir", str(destdir), "--bin", str(programs))
    assert done.returncode == 0, done.stderr
    return destdir / "etc/systemd/system"


def directives(unit: Path) -> dict[str, list[str]]:
    """Return the values of each key; lines that end with a backslash go on."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().replace("\\\n", " ").splitlines():
        key, is_set, value = line.partition("=")
        if is_set and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@needs_systemd
def test_systemd_finds_no_fault(installed):
    assert ANALYZE is not None
    units = [str(installed / name) for name in SYSTEM_UNITS]
    done = subprocess.run([ANALYZE, "verify", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not NEWER.search(line)] == []


@needs_systemd
@pytest.mark.parametrize("name", [name for name in SYSTEM_UNITS if name.endswith(".service")])
def test_systemd_calls_them_little_exposed(installed, name):
    assert ANALYZE is not None
    argv = [ANALYZE, "security", "--offline=yes", "--no-pager", str(installed / name)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    score = re.search(rf"Overall exposure level for {name}: ([0-9.]+)", done.stdout)
    assert score is not None, done.stdout + done.stderr
    assert float(score[1]) <= MOST_EXPOSED


@needs_systemd
def test_the_users_unit_has_no_fault_either(tmp_path, programs):
    assert ANALYZE is not None
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime)}
    assert run_install("--user", "--bin", str(programs), **environment).returncode == 0
    unit = tmp_path / "systemd/user/minedraft.service"
    done = subprocess.run(
        [ANALYZE, "--user", "verify", str(unit)], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not NEWER.search(line)] == []
    assert f"unix:{runtime}/minedraft.sock" in (tmp_path / "minedraft/minedraft.toml").read_text()
    assert run_install("--user", "--undo", "--purge", **environment).returncode == 0
    assert not list(tmp_path.rglob("*minedraft*"))


@pytest.mark.parametrize("name", [name for name in SYSTEM_UNITS if name.endswith(".service")])
def test_what_is_promised_is_in_every_unit(installed, name):
    unit = directives(installed / name)
    expected = {
        "Type": "notify", "NotifyAccess": "main", "WatchdogSec": "30", "Restart": "on-failure", "RestartSec": "1",
        "RestartSteps": "5", "RestartMaxDelaySec": "60", "StartLimitIntervalSec": "300", "StartLimitBurst": "5",
        "RestartPreventExitStatus": "78", "KillMode": "mixed", "TimeoutStopSec": "45", "LimitCORE": "0",
        "UMask": "0077", "DynamicUser": "yes", "User": "minedraft", "NoNewPrivileges": "yes",
        "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "CapabilityBoundingSet": "",
        "RestrictNamespaces": "yes", "LockPersonality": "yes", "RestrictRealtime": "yes", "RestrictSUIDSGID": "yes",
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK", "RemoveIPC": "yes",
        "RuntimeDirectoryMode": "0750", "DevicePolicy": "closed",
    }  # fmt: skip
    assert {key: unit.get(key) for key in expected} == {key: [value] for key, value in expected.items()}
    assert unit["SystemCallFilter"] == ["@system-service", "~@privileged"]
    is_worker = name in ("minedraft-drafter.service", "minedraft-verifier.service")
    assert unit["OOMScoreAdjust"] == (["300"] if is_worker else ["-500"])
    assert (unit.get("IPAddressDeny"), unit.get("IPAddressAllow")) == (
        (["any"], ["localhost"]) if is_worker else (None, None)
    )
    # Each of these would break a GPU or a compiler that runs while the service does.
    assert not unit.keys() & {"PrivateDevices", "MemoryDenyWriteExecute", "PrivateIPC"}
    assert "@" not in "".join(unit["ExecStart"])


def test_no_unit_restarts_what_another_one_restarts(installed):
    target = directives(installed / "minedraft.target")
    assert target["Conflicts"] == ["minedraft.service"]
    three = [name for name in SYSTEM_UNITS if name.startswith("minedraft-")]
    assert sorted(target["Wants"][0].split()) == sorted(three)
    for name in three:
        unit = directives(installed / name)
        assert unit["PartOf"] == ["minedraft.target"]
        assert "minedraft-launch" not in unit["ExecStart"][0]


def test_settings_of_the_operator_outlive_an_installation_and_its_undo(tmp_path, programs):
    arguments = ("--destdir", str(tmp_path), "--bin", str(programs))
    for path in tmp_path.rglob("*"):
        path.unlink()
    assert run_install(*arguments, "--dry-run").returncode == 0
    assert not list(tmp_path.iterdir())
    run_install(*arguments)
    settings = tmp_path / "etc/minedraft/minedraft.toml"
    settings.write_text("mine")
    done = run_install(*arguments, "--prefix", "/usr")
    assert f"keep     {settings}" in done.stdout
    assert (tmp_path / "usr/lib/systemd/system/minedraft.service").exists()
    for more in ((), ("--prefix", "/usr")):
        assert run_install(*arguments, "--undo", *more).returncode == 0
    assert not list(tmp_path.rglob("*.service"))
    assert settings.read_text() == "mine"
    run_install(*arguments, "--undo", "--purge")
    assert not settings.exists()


def test_a_folder_without_the_commands_or_below_a_home_is_refused(tmp_path):
    done = run_install("--destdir", str(tmp_path), "--bin", str(tmp_path))
    assert done.returncode == EXIT_USAGE
    assert "has no minedraft-launch" in done.stderr
    done = run_install("--destdir", str(tmp_path), "--bin", "/root/bin")
    assert done.returncode == EXIT_USAGE
    assert "a system service sees no home folders" in done.stderr
