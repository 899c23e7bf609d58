"""The hint that a refused request gets, from how fast others end."""

from __future__ import annotations

from minedraft.core import events
from minedraft.core.queueing.pace import MAX_RETRY_S, MIN_RETRY_S, Pace
from minedraft.types import FinishReason


def ended(pace: Pace, now_s: float) -> None:
    pace.observe(events.RequestEnded(1, 5, FinishReason.LENGTH), now_s)


def test_the_hint_is_the_time_in_which_as_many_places_become_free_as_are_wanted() -> None:
    pace = Pace()
    for second in range(11):
        ended(pace, 100.0 + second / 2)
    first = pace.refuse(105.0)
    assert 0.4 < first < 0.6
    assert pace.refuse(105.0) == 2 * first
    assert pace.refuse(105.0) == 3 * first
    for _ in range(3):
        ended(pace, 105.0)
    assert pace.refuse(105.0) < 2 * first, "three places became free for them"


def test_the_hint_is_bounded_and_known_before_anything_has_ended() -> None:
    pace = Pace()
    assert pace.refuse(0.0) == 1.0
    assert max(pace.refuse(1.0) for _ in range(100)) == MAX_RETRY_S
    for _ in range(500):
        ended(pace, 2.0)
    assert pace.refuse(2.0) == MIN_RETRY_S
    assert pace.refuse(500.0) > MIN_RETRY_S, "what ended long ago says nothing"
