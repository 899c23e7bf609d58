"""When a benchmark refuses to run: drafts are asked for, and the service has no drafter."""

from __future__ import annotations

import pytest

from minedraft.bench.runner import default_configs, require_drafter
from minedraft.errors import ConfigError, Unavailable
from minedraft.output import ServiceStatus, WorkerState
from minedraft.types import Mode

CONFIGS = default_configs(2, 3)
VERIFIER = WorkerState("verifier", "ready")


def a_service(mode: str, *drafters: str) -> ServiceStatus:
    return ServiceStatus("serving", mode, workers=(VERIFIER, *(WorkerState("drafter", state) for state in drafters)))


def test_a_service_without_a_drafter_is_refused_by_its_mode() -> None:
    with pytest.raises(ConfigError, match=r"modes is 'sd, minedraft': the service runs in mode ar .*--mode minedraft"):
        require_drafter(a_service("ar"), CONFIGS)


def test_a_lost_drafter_is_refused_until_it_is_back() -> None:
    with pytest.raises(Unavailable, match="the drafter is lost, so sd, minedraft would run without drafts: wait until"):
        require_drafter(a_service("minedraft", "lost"), CONFIGS)
    require_drafter(a_service("minedraft", "ready"), CONFIGS)


def test_mode_ar_alone_needs_no_drafter() -> None:
    without_drafts = [config for config in CONFIGS if config.mode is Mode.AR]
    for drafters in ((), ("lost",)):
        require_drafter(a_service("ar", *drafters), without_drafts)
