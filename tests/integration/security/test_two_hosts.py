"""A verifier on another host: two network namespaces, certificates on both ends, packets delayed and lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CAN_HAVE_HOSTS = os.geteuid() == 0 and Path("/dev/net/tun").exists() and Path("/usr/sbin/ip").exists()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN_HAVE_HOSTS, reason="network namespaces need root, iproute2 and /dev/net/tun"),
]


def test_answers_are_the_same_through_a_bad_network_and_nothing_is_left(tmp_path: Path) -> None:
    argv = ["--pairs", "timed", "-m", "2", "--repeats", "1", "--tokens", "6", "--loss", "0.05", "--delay-ms", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.lib.two_hosts.main", *argv, "--json", str(tmp_path / "found.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if "cannot be had here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    [found] = json.loads((tmp_path / "found.json").read_text())["pairs"].values()
    assert found["all_answers_equal"]
    assert found["lost_packets"] > 0
    assert found["errors"] == {}
    assert all(row["far"] > 0 for row in found["tokens_per_s"].values())
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not [name for name in left.split() if name.startswith("minedraft-") and _is_of_a_dead_process(name)]


def _is_of_a_dead_process(name: str) -> bool:
    return not Path("/proc", name.rpartition("-")[2]).exists()
