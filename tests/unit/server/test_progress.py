from dataclasses import dataclass

from minedraft.core import events
from minedraft.server.progress import SchedulerProgress, StepProgress
from minedraft.types import Batch


@dataclass
class Lanes:
    """What the watchdog sees of a pipeline. While its lanes live, they answer a look with an event."""

    progress: SchedulerProgress
    is_idle: bool = False
    has_verifier: bool = True
    do_lanes_live: bool = True

    def look_again(self) -> None:
        if self.do_lanes_live:
            self.progress.observe(events.LaneIdle(Batch.A), 0.0)


def watched(**state: bool) -> tuple[SchedulerProgress, Lanes]:
    progress = SchedulerProgress()
    lanes = Lanes(progress, **state)
    progress.watch(lanes)
    return progress, lanes


def counts(progress: SchedulerProgress) -> list[int]:
    return [progress.look().count for _ in range(3)]


def test_without_requests_or_a_verifier_nothing_has_to_move():
    assert SchedulerProgress().look() == StepProgress(is_idle=True, count=0)
    for state in ({"is_idle": True}, {"has_verifier": False}):
        progress, _ = watched(**state, do_lanes_live=False)
        assert progress.look().is_idle


def test_a_round_that_is_with_a_worker_may_take_its_time():
    progress, _ = watched(do_lanes_live=False)
    progress.observe(events.RoundPlanned(Batch.A, 7, 1, 0, 0), 0.0)
    assert progress.look().is_idle
    progress.observe(events.RoundAbandoned(Batch.A, 7), 0.0)
    assert not progress.look().is_idle


def test_lanes_without_a_round_show_that_they_live_and_dead_ones_do_not():
    progress, lanes = watched()
    assert len(set(counts(progress))) == 3
    lanes.do_lanes_live = False
    assert len(set(counts(progress))) == 1
