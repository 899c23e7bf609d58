"""What a benchmark runs, how long it will take, and when it refuses to."""

from __future__ import annotations

import pytest

from minedraft.bench.plan import Sweep, can_share_cores
from minedraft.bench.progress import Eta, format_left
from minedraft.bench.prompts import load_prompts
from minedraft.bench.runner import default_configs, planned_runs, require_drafter
from minedraft.errors import ConfigError, Unavailable
from minedraft.output import ServiceStatus, WorkerState
from minedraft.sampling_params import SamplingParams
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


def test_rows_of_tables_that_differ_in_k_are_shared_where_there_are_no_drafts() -> None:
    sweep = Sweep([Mode.AR, Mode.SD, Mode.MINEDRAFT], [4], [1, 2], can_share_cores=True)
    one, two = tables = sweep.tables(load_prompts(None), SamplingParams())
    assert [row.config.label for row in one.rows] == [
        "ar m=8 on the verifier's device", "ar m=8", "sd m=4 k=1", "sd m=8 k=1",
        "sd m=8 k=1 on all cores", "minedraft m=4 k=1"
    ]  # fmt: skip
    assert one.rows[0] is two.rows[0]
    assert [row.config.label for _, row in planned_runs(tables)] == [
        *(row.config.label for row in one.rows), *(row.config.label for row in two.rows[2:])
    ]  # fmt: skip
    assert len(one.prompts) == 8


def test_a_sweep_has_every_combination_and_prompts_for_its_seats() -> None:
    sweep = Sweep([Mode.MINEDRAFT], [1, 4], [2], samples=[1, 3], temperatures=[0.0, 0.8])
    tables = sweep.tables(load_prompts(None), SamplingParams())
    assert [(len(t.prompts), t.sampling.n, t.sampling.temperature) for t in tables] == [
        (2, 1, 0.0), (2, 1, 0.8), (1, 3, 0.0), (1, 3, 0.8), (8, 1, 0.0), (8, 1, 0.8), (2, 3, 0.0), (2, 3, 0.8)
    ]  # fmt: skip


def test_only_two_devices_with_cores_can_be_shared() -> None:
    assert can_share_cores(ServiceStatus("serving", workers=(on("verifier", "cpu:1"), on("drafter", "cpu:0"))))
    assert not can_share_cores(ServiceStatus("serving", workers=(on("verifier", "cuda:0"), on("drafter", "cpu:0"))))
    assert not can_share_cores(ServiceStatus("serving", workers=(on("verifier", "cpu:1"),)))


def on(role: str, device: str) -> WorkerState:
    return WorkerState(role, "ready", device=device)


def test_the_time_left_is_that_of_the_last_runs() -> None:
    eta = Eta(["a", "b", "a", "b"])
    assert eta.left_s() is None
    eta.note("a", 10.0)
    assert eta.left_s() == 30.0, "b is taken to last as long as a"
    eta.note("b", 2.0)
    assert eta.left_s() == 12.0
    eta.note("a", 6.0)
    assert eta.left_s() == 2.0


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (11_100, "3 h 5 min")])
def test_the_time_left_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert format_left(seconds) == text
