"""How many decode steps a command carries follows from how long a step takes."""

from __future__ import annotations

import pytest

from minedraft.core import events
from minedraft.core.policy.steps import LONGEST_S, StepsPerCommand
from minedraft.messages import Timing
from minedraft.types import Batch


def decode(steps: StepsPerCommand, step_ms: float, num_rounds: int = 1, *, num_prompt_tokens: int = 0) -> None:
    for number in range(num_rounds):
        num_steps = steps.num_steps()
        busy_ns = round(step_ms * num_steps * 1e6)
        timing = Timing(forward_ns=busy_ns, busy_ns=busy_ns)
        steps.observe(events.RoundPlanned(Batch.A, number, 1, num_prompt_tokens, 0), 0.0)
        steps.observe(events.Verified(Batch.A, number, timing, num_steps=num_steps), 0.0)
        steps.observe(events.RoundCommitted(Batch.A, number, 1, num_steps, (), False, 1), 0.0)


def test_there_is_one_step_until_one_is_measured() -> None:
    steps = StepsPerCommand()
    assert steps.num_steps() == 1
    decode(steps, 50.0, num_prompt_tokens=9)
    assert steps.num_steps() == 1, "a prompt is no step"


@pytest.mark.parametrize(
    ("step_ms", "expected"), [(0.1, 4), (8.3, 4), (9.0, 3), (12.0, 2), (17.0, 2), (18.0, 1), (200.0, 1)]
)
def test_steps_of_one_command_take_no_longer_than_an_update_of_a_stream(step_ms: float, expected: int) -> None:
    steps = StepsPerCommand()
    decode(steps, step_ms, 5)
    assert steps.num_steps() == expected
    assert expected == 1 or expected * step_ms <= LONGEST_S * 1e3


def test_the_number_follows_the_load() -> None:
    steps = StepsPerCommand()
    decode(steps, 8.0, 5)
    assert steps.num_steps() == 4
    decode(steps, 30.0, 20)
    assert steps.num_steps() == 1
    decode(steps, 8.0, 20)
    assert steps.num_steps() == 4


def test_rounds_that_computed_nothing_tell_nothing() -> None:
    """A round that follows one which gave no token is answered at once."""
    steps = StepsPerCommand()
    decode(steps, 30.0, 5)
    for number in range(20):
        steps.observe(events.RoundPlanned(Batch.A, number, 1, 0, 0), 0.0)
        steps.observe(events.Verified(Batch.A, number, Timing(busy_ns=1000)), 0.0)
    assert steps.num_steps() == 1
