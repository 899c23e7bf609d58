"""Rounds of several decode steps: the same tokens, and one step wherever more would harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from minedraft.core.request import NewRequest, RequestUpdate
from minedraft.core.rounds import RoundPlan
from minedraft.errors import InvalidRequest
from minedraft.messages import VerifyCommand
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason, Mode
from tests.fakes.workers import continuation
from tests.unit.core.pair import PROMPTS, Pair

STEPS = 4


class Decoding(Pair):
    """Two requests that have their first token, and may have several steps a command; a third seat is free."""

    def __init__(self, stop_ids: tuple[int, ...] = (), **sampling: object) -> None:
        super().__init__(size=3, max_steps=STEPS, stop_ids=stop_ids, **sampling)
        plan = self.plan()
        assert self.steps_of(plan) == [1, 1], "a first token is not held back"
        self.end(plan)

    def end(self, plan: RoundPlan) -> list[RequestUpdate]:
        command = self.send(plan)
        return self.commit(plan, command, self.verifier.execute(command))

    def outputs(self) -> list[list[int]]:
        return [self.output_of(request) for request in self.requests]

    @staticmethod
    def steps_of(plan: RoundPlan) -> list[int]:
        return [span.num_steps for span in plan.spans]


def truth(num_tokens: int) -> list[list[int]]:
    return [continuation(prompt, num_tokens) for prompt in PROMPTS]


def test_one_command_gives_a_token_for_each_step() -> None:
    decoding = Decoding()
    plan = decoding.plan()
    assert decoding.steps_of(plan) == [STEPS, STEPS]
    before = len(decoding.verifier.commands)
    updates = decoding.end(plan)
    assert decoding.outputs() == truth(1 + STEPS)
    assert len(decoding.verifier.commands) == before + STEPS, "forwards"
    assert [[tokens for tokens, _, _ in update.steps] for update in updates] == [
        [(token,) for token in tokens[1:]] for tokens in truth(1 + STEPS)
    ]
    assert [request.num_rounds for request in decoding.requests] == [1 + STEPS] * 2


def test_a_round_that_follows_begins_after_all_steps_of_the_one_before() -> None:
    decoding = Decoding()
    first = decoding.plan()
    second = decoding.follow(first)
    commands = decoding.send(first), decoding.send(second)
    replies = [decoding.verifier.execute(command) for command in commands]
    for plan, command, reply in zip((first, second), commands, replies, strict=True):
        decoding.commit(plan, command, reply)
    assert decoding.outputs() == truth(1 + 2 * STEPS)


def test_no_step_is_made_beyond_the_length_that_a_request_may_have() -> None:
    decoding = Decoding(max_new_tokens=2 + STEPS)
    first = decoding.plan()
    second = decoding.follow(first)
    assert decoding.steps_of(second) == [1, 1]
    assert decoding.scheduler.follow(second) is None
    decoding.end(first)
    assert [update.finish_reason for update in decoding.end(second)] == [FinishReason.LENGTH] * 2
    assert decoding.outputs() == truth(2 + STEPS)


def test_a_request_that_ends_within_the_steps_is_left_out_of_the_later_ones() -> None:
    stop_id = truth(2)[0][1]
    decoding = Decoding(stop_ids=(stop_id,))
    updates = decoding.end(decoding.plan())
    assert updates[0].finish_reason is FinishReason.STOP
    assert decoding.outputs() == [truth(2)[0], truth(1 + STEPS)[1]]
    lens = [len(command.spans) for command in decoding.verifier.commands[-STEPS:]]
    assert lens == [2, 1, 1, 1]


def test_steps_that_are_refused_are_made_again_and_those_that_follow_them_change_nothing() -> None:
    decoding = Decoding()
    first = decoding.plan()
    second = decoding.follow(first)
    commands = decoding.send(first), decoding.send(second)
    last = len(decoding.verifier.commands) + 2

    def refuse(command: VerifyCommand) -> None:
        if len(decoding.verifier.commands) == last:
            raise InvalidRequest("tokens", "odd", "refused for the test")

    decoding.verifier.refuse = refuse
    decoding.commit(first, commands[0], decoding.verifier.execute(commands[0]))
    assert decoding.outputs() == truth(3)
    assert not decoding.commit(second, commands[1], decoding.verifier.execute(commands[1]))
    decoding.verifier.refuse = lambda command: None
    decoding.end(decoding.plan())
    assert decoding.outputs() == truth(3 + STEPS)


def test_rounds_that_are_curtailed_make_no_further_steps() -> None:
    decoding = Decoding()
    first = decoding.plan()
    second = decoding.follow(first)
    commands = decoding.send(first), decoding.send(second)
    decoding.verifier.curtail(second.number)
    replies = [decoding.verifier.execute(command) for command in commands]
    decoding.commit(first, commands[0], replies[0])
    assert not decoding.commit(second, commands[1], replies[1])
    assert decoding.outputs() == truth(2)
    decoding.end(decoding.plan())
    assert decoding.outputs() == truth(2 + STEPS), "later rounds have all their steps"


def wait_for_a_seat(decoding: Decoding) -> None:
    decoding.scheduler.add(NewRequest((7, 8, 9), SamplingParams(max_new_tokens=2)))
    decoding.scheduler.add(NewRequest((7, 8), SamplingParams(max_new_tokens=2)))


def change_the_mode(decoding: Decoding) -> None:
    """It waits until one of three seats in a batch is left by a request."""
    for request_id in (10, 11):
        decoding.scheduler.add(NewRequest((request_id,), SamplingParams(max_new_tokens=9)))
    decoding.end(decoding.plan())
    decoding.scheduler.reconfigure(replace(decoding.scheduler.limits, max_batch_size=1), "test")
    assert not decoding.scheduler.is_settled


def abort_one(decoding: Decoding) -> None:
    decoding.requests[0].is_aborted = True


def run_short_of_blocks(decoding: Decoding) -> None:
    kv = decoding.scheduler.verifier_kv
    kv.reserve(99, kv.pool.num_free * kv.pool.block_size)


@pytest.mark.parametrize("harm", [wait_for_a_seat, change_the_mode, abort_one, run_short_of_blocks])
def test_a_round_has_one_step_where_more_would_harm(harm: Callable[[Decoding], None]) -> None:
    decoding = Decoding()
    harm(decoding)
    assert set(decoding.steps_of(decoding.plan())) == {1}


def test_a_grammar_decides_each_token_before_the_next_command() -> None:
    decoding = Decoding(regex="a*")
    assert decoding.steps_of(decoding.plan()) == [1, 1]


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.AR])
def test_a_mode_with_drafts_has_one_step(mode: Mode) -> None:
    decoding = Decoding()
    decoding.scheduler.reconfigure(replace(decoding.scheduler.limits, mode=mode), "test")
    assert set(decoding.steps_of(decoding.plan())) == {1}
