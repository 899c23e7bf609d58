"""Waiting for a service that loads its models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from minedraft.cli.readiness import wait_until_loaded
from minedraft.errors import Unavailable
from minedraft.output import ServiceStatus


@dataclass
class FakeService:
    """A service whose states are given, and a clock that moves by the time slept only."""

    states: list[str | Exception]
    address: str = "unix:/s"
    now_s: float = 100.0

    def status(self) -> ServiceStatus:
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return ServiceStatus(state)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def wait(states: Iterable[str | Exception], timeout_s: float | None = None) -> float | None:
    service = FakeService(list(states))
    left_s = wait_until_loaded(service, timeout_s, clock=service.clock, sleep=service.sleep)  # type: ignore[arg-type]
    assert service.states == ["never asked"]
    return left_s


def test_a_service_that_has_loaded_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    for state in ("serving", "degraded", "recovering", "draining"):
        assert wait([state, "never asked"]) is None
    assert wait(["serving", "never asked"], 5.0) == 5.0
    assert capsys.readouterr() == ("", "")


def test_the_wait_is_told_every_ten_seconds_and_what_is_left_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    left_s = wait([*["starting"] * 110, "serving", "never asked"], 60.0)
    assert left_s == pytest.approx(60 - 110 * 0.2)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "waiting for the service at unix:/s, which loads its models",
        "waiting for the service at unix:/s, which loads its models, for 10 s now",
        "waiting for the service at unix:/s, which loads its models, for 20 s now",
    ]


def test_the_wait_has_an_end() -> None:
    with pytest.raises(Unavailable, match=r"still loads its models after 3 s \(timeout_s\)"):
        wait(["starting"] * 100, 3.0)
    with pytest.raises(Unavailable, match="nothing listens"):
        wait(["starting", Unavailable("nothing listens there"), "never asked"])
