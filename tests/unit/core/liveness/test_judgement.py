"""Dead and living workers by the thousand: whoever hangs is found in time, whoever is only slow never is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft.core.liveness.judgement import (
    FIRST_LIMIT_S,
    LEAST_LIMIT_S,
    LIMIT_IN_STEPS,
    LONGEST_GAP_S,
    LivenessJudge,
    Signs,
)
from minedraft.core.liveness.recent_times import RecentTimes
from minedraft.errors import LossCause

LOOK_S = HEARTBEAT_S = 0.5
FOUND_WITHIN_S = 5.0


class Worker:
    """A worker that owes one answer, as its scheduler sees it.

    Its device moves after each of `steps` seconds; it stands still from `still_from_s` on, and its process is stopped
    from `silent_from_s` on.
    """

    def __init__(self, rng: random.Random, longest_step_s: float, still_from_s: float, silent_from_s: float) -> None:
        self._rng, self._longest_step_s = rng, longest_step_s
        self._still_from_s, self._silent_from_s = still_from_s, silent_from_s
        self._moves_at_s = rng.uniform(0, longest_step_s)
        self._beats_at_s = rng.uniform(0, HEARTBEAT_S)
        self._progress = 0
        self.signs = Signs(1, 1)

    def run_until(self, now_s: float) -> None:
        while (at_s := min(self._moves_at_s, self._beats_at_s)) <= now_s:
            if at_s == self._moves_at_s:
                self._progress += at_s < min(self._still_from_s, self._silent_from_s)
                self._moves_at_s += self._rng.uniform(0.01, 1) * self._longest_step_s
            if at_s == self._beats_at_s:
                self._beats_at_s += HEARTBEAT_S
                if at_s < self._silent_from_s:
                    self.signs = Signs(1, 1, self.signs.num_heard + 1, 0, self._progress)


def judge_until_found(judge: LivenessJudge, worker: Worker, end_s: float) -> tuple[float, LossCause] | None:
    now_s = 0.0
    while now_s < end_s:
        worker.run_until(now_s)
        if (cause := judge.look(now_s, worker.signs)) is not None:
            return now_s, cause
        now_s += LOOK_S
    return None


def known(*times_s: float) -> LivenessJudge:
    judge = LivenessJudge()
    for time_s in times_s or (0.01,):
        judge.times.add(time_s)
    return judge


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32), step_s=st.floats(0.05, LEAST_LIMIT_S - HEARTBEAT_S))
def test_a_slow_forward_that_moves_is_never_taken_to_hang_however_long_it_lasts(seed: int, step_s: float) -> None:
    worker = Worker(random.Random(seed), step_s, float("inf"), float("inf"))
    assert judge_until_found(known(), worker, 60.0) is None


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32), step_s=st.floats(0.05, 1.0), at_s=st.floats(0, 30.0), is_silent=st.booleans())
def test_whoever_hangs_is_found_within_five_seconds(seed: int, step_s: float, at_s: float, is_silent: bool) -> None:
    never = float("inf")
    worker = Worker(random.Random(seed), step_s, never if is_silent else at_s, at_s if is_silent else never)
    found = judge_until_found(known(), worker, at_s + 20.0)
    assert found is not None
    assert found[1] is (LossCause.SILENT if is_silent else LossCause.NO_PROGRESS)
    # A device may have moved for the last time a step before, and a process beaten for the last time a beat before.
    assert LEAST_LIMIT_S - HEARTBEAT_S - step_s <= found[0] - at_s <= FOUND_WITHIN_S


def test_the_limit_is_twenty_steps_where_steps_are_slow() -> None:
    judge = known(*[1.0] * 99, 2.0)
    assert judge.limit_s == LIMIT_IN_STEPS * 2.0
    found = judge_until_found(judge, Worker(random.Random(1), 0.1, 10.0, float("inf")), 100.0)
    assert found is not None
    assert 49.0 < found[0] < 52.0


def test_the_device_of_a_worker_that_has_answered_nothing_yet_may_compile_its_kernels() -> None:
    found = judge_until_found(LivenessJudge(), Worker(random.Random(1), 0.1, 0.0, float("inf")), 100.0)
    assert found is not None
    assert FIRST_LIMIT_S <= found[0] <= FIRST_LIMIT_S + 1
    found = judge_until_found(LivenessJudge(), Worker(random.Random(1), 0.1, float("inf"), 0.0), 100.0)
    assert found is not None
    assert found[0] <= FOUND_WITHIN_S, "its process must be heard all the same"


def test_nothing_is_owed_by_an_idle_worker_and_no_movement_by_a_device_without_a_command() -> None:
    judge = known()
    assert all(judge.look(now_s / 2, Signs(0, 0)) is None for now_s in range(1000))
    assert all(judge.look(500 + now_s / 2, Signs(1, 0, num_heard=now_s)) is None for now_s in range(1000))


def test_one_who_was_held_up_himself_judges_nobody() -> None:
    judge = known()
    judge.look(0.0, Signs(1, 1))
    for hour in range(1, 4):
        assert judge.look(3600.0 * hour, Signs(1, 1)) is None, "it counts as one look of a second"
    assert judge.look(3600.0 * 4, Signs(1, 1)) is LossCause.SILENT
    assert LONGEST_GAP_S * 4 == LEAST_LIMIT_S


@pytest.mark.parametrize(
    ("times", "p99_s"), [([], 0.0), ([3.0], 3.0), ([1.0, 5.0, 2.0], 5.0), ([*[1.0] * 199, 9.0], 1.0)]
)
def test_the_time_within_which_nearly_all_are_done(times: list[float], p99_s: float) -> None:
    recent = RecentTimes()
    for time_s in times:
        recent.add(time_s)
    assert recent.p99_s == p99_s
    assert len(recent) == len(times)
