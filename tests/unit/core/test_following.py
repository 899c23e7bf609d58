"""Rounds that are sent before the round before them has ended."""

from __future__ import annotations

from minedraft.core.request import NewRequest
from minedraft.engine.mirrors import make_ledger
from minedraft.errors import InternalError, InvalidRequest, ProtocolError
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason
from tests.fakes.workers import FakeVerifier, continuation
from tests.unit.core.pair import PROMPTS, Pair


def test_a_round_is_sent_and_executed_before_the_one_before_it_is_committed() -> None:
    pair = Pair()
    first = pair.plan()
    second = pair.follow(first)
    commands = pair.send(first), pair.send(second)
    replies = [pair.verifier.execute(command) for command in commands]
    for plan, command, reply in zip((first, second), commands, replies, strict=True):
        pair.commit(plan, command, reply)
    assert [pair.output_of(r) for r in pair.requests] == [continuation(p, 2) for p in PROMPTS]


def test_after_a_refusal_the_round_that_follows_changes_nothing_and_names_nobody() -> None:
    pair = Pair()
    first = pair.plan()
    second = pair.follow(first)
    commands = pair.send(first), pair.send(second)
    culprit, other = pair.requests

    def refuse(command: object) -> None:
        error = InvalidRequest("tokens", "odd", "refused for the test")
        error.request_id = culprit.id
        raise error

    pair.verifier.refuse = refuse
    try:
        pair.verifier.execute(commands[0])
    except ProtocolError as error:
        (update,) = pair.scheduler.abandon(first, error.request_id, InternalError(str(error)))
    assert update.request is culprit
    assert pair.scheduler.follow(second) is None, "it follows a round that gave no token"
    pair.commit(second, commands[1], pair.verifier.execute(commands[1]))
    assert not pair.output_of(other)
    pair.verifier.refuse = lambda command: None
    third = pair.plan()
    command = pair.send(third)
    pair.commit(third, command, pair.verifier.execute(command))
    assert pair.output_of(other) == continuation(PROMPTS[1], 1)


def test_a_request_that_ends_in_a_round_takes_no_token_of_the_one_that_follows() -> None:
    stop_id = continuation(PROMPTS[0], 1)[0]
    pair = Pair(stop_ids=(stop_id,))
    ended, other = pair.requests
    first = pair.plan()
    second = pair.follow(first)
    commands = pair.send(first), pair.send(second)
    replies = [pair.verifier.execute(command) for command in commands]
    updates = pair.scheduler.commit(first, commands[0].spans, replies[0].verdicts)
    assert [u.finish_reason for u in updates if u.request is ended] == [FinishReason.STOP]
    updates = pair.scheduler.commit(second, commands[1].spans, replies[1].verdicts)
    assert [u.request for u in updates] == [other]
    assert pair.output_of(ended) == [stop_id]


def test_both_rounds_of_a_lost_verifier_come_again() -> None:
    pair = Pair()
    first = pair.plan()
    second = pair.follow(first)
    assert pair.scheduler.abort(pair.requests[0].id) is None
    pair.scheduler.detach_verifier()
    assert [u.finish_reason for u in pair.scheduler.lose_round(first)] == [FinishReason.ABORT]
    assert pair.scheduler.lose_round(second) == []
    pair.verifier = FakeVerifier()
    pair.scheduler.attach_verifier(make_ledger(pair.verifier.info))
    again = pair.plan()
    command = pair.send(again)
    pair.commit(again, command, pair.verifier.execute(command))
    assert pair.output_of(pair.requests[1]) == continuation(PROMPTS[1], 1)


def test_a_request_takes_part_in_no_round_after_its_last_token() -> None:
    pair = Pair(max_new_tokens=1)
    assert pair.scheduler.follow(pair.plan()) is None


def test_a_request_that_can_be_seated_is_not_kept_waiting_by_a_round_that_follows() -> None:
    pair = Pair()
    first = pair.plan()
    pair.scheduler.add(NewRequest((7,), SamplingParams(max_new_tokens=2)))
    assert pair.scheduler.follow(first) is not None, "no seat is free"
    pair = Pair()
    first = pair.plan()
    assert pair.scheduler.abort(pair.requests[0].id) is None
    assert pair.scheduler.follow(first) is None, "a request ends with the round"
