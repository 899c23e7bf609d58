"""Lost workers are counted by role and cause, and those that came back."""

from __future__ import annotations

from minedraft.core import events
from minedraft.core.counters import Counters
from minedraft.errors import LossCause
from minedraft.messages import LinkStats
from minedraft.types import Role
from tests.fakes.workers import FakeDrafter, FakeVerifier


def test_each_loss_is_counted_by_its_cause_and_each_return_once() -> None:
    counters = Counters()
    joined = [events.WorkerJoined(worker.info) for worker in (FakeVerifier(), FakeDrafter())]
    lost = [
        events.WorkerLeft(Role.DRAFTER, "drafter: killed", LinkStats()),
        events.WorkerLeft(Role.DRAFTER, "drafter: hangs", LinkStats(), LossCause.NO_PROGRESS),
        events.WorkerLeft(Role.VERIFIER, "verifier: killed", LinkStats(), LossCause.DEAD),
    ]
    for event in (*joined, lost[0], joined[1], lost[1], joined[1], lost[2]):
        counters.observe(event, 0.0)
    assert counters.losses == {
        (Role.DRAFTER, LossCause.DEAD): 1,
        (Role.DRAFTER, LossCause.NO_PROGRESS): 1,
        (Role.VERIFIER, LossCause.DEAD): 1,
    }
    assert counters.lost_workers == 3
    assert counters.rejoins == 2
