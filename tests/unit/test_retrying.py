"""A refused generation is sent again when the refusal says so, and only before its first token."""

from __future__ import annotations

import pytest

from minedraft import AsyncClient, Client
from minedraft.errors import InvalidRequest, Overloaded, Unavailable
from minedraft.retrying import Patience


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_hint_is_followed_and_spread_while_patience_lasts(clock: Clock) -> None:
    patience = Patience(5.0, None, clock)
    delays = {patience.delay_s(Overloaded("full", 2.0)) for _ in range(20)}
    assert all(delay_s is not None and 2.0 <= delay_s <= 2.5 for delay_s in delays)
    assert len(delays) > 1, "clients that were refused together do not come back together"
    clock.now_s += 3.1
    assert patience.delay_s(Overloaded("full", 2.0)) is None


def test_without_patience_without_a_hint_or_after_a_token_the_error_is_the_answer(clock: Clock) -> None:
    assert Patience(0.0, None, clock).delay_s(Unavailable("starting", 0.0)) is None
    patience = Patience(60.0, None, clock)
    assert patience.delay_s(InvalidRequest("n", 0, "at least 1")) is None
    assert patience.delay_s(Unavailable("starting")) is not None
    patience.end()
    assert patience.delay_s(Unavailable("starting")) is None


def test_all_tries_share_one_deadline(clock: Clock) -> None:
    patience = Patience(60.0, 10.0, clock)
    clock.now_s += 4.0
    assert patience.timeout_s() == 6.0
    clock.now_s += 40.0
    assert patience.timeout_s() == 0.0
    assert Patience(60.0, None, clock).timeout_s() is None


@pytest.mark.parametrize("wrong", [-1, float("nan"), "5", True])
def test_a_patience_that_is_none_is_refused(wrong: object) -> None:
    for kind in (AsyncClient, Client):
        with pytest.raises(InvalidRequest, match="patience_s"):
            kind("unix:/nowhere", patience_s=wrong)
