"""A short run of `scripts/chaos` with tiny models; `pytest --chaos-minutes 3` makes it longer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def minutes(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--chaos-minutes")


def test_under_random_faults_nothing_is_wrong_lost_or_leaked(minutes: float, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    flags = ("--tiny", "--minutes", str(minutes), "--seed", "4", "--fault-every-s", "2", "--json", str(report))
    command = child_command("scripts.lib.chaos", *flags, "--clients", "6")
    with WatchedProcess(command, print, child_environment()) as chaos:
        code = chaos.ended.result()
    content = json.loads(report.read_text())
    assert code == 0, chaos.tail
    assert content["leaked"] == content["problems"] == []
    assert content["requests"]["answered"] > 0
    assert content["faults"]["made"] > 0
