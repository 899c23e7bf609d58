"""A worker that is lost and joins again, at the level of the scheduler: fake workers in one event loop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.engine import slots
from minedraft.engine.slots import SlotState, drafter_slot, verifier_slot
from minedraft.errors import Draining, InternalError, ModelError, ProtocolError, WorkerLost
from minedraft.sampling_params import SamplingParams
from minedraft.types import DraftMethod, FinishReason, Mode, Role
from scripts.lib.sink import Collector
from tests.fakes.service import FakeConnector
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline
from tests.support.stepping import until
from tests.unit.engine.test_pipeline import answer_all

LIMITS = SchedulerLimits(max_batch_size=2, max_model_len=128)
PROMPTS = [(n, 3, 5) for n in range(1, 7)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(slots, "_LAST_RETRY_S", 0.002)


def submit_all(pipeline: CountedPipeline, num_tokens: int = 60) -> list[Collector]:
    sinks = [Collector() for _ in PROMPTS]
    for prompt, sink in zip(PROMPTS, sinks, strict=True):
        pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=num_tokens)), sink)
    return sinks


async def test_requests_wait_for_a_verifier_and_go_on_with_the_same_tokens() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    happened: list[events.Event] = []
    pipeline = CountedPipeline(
        LIMITS, verifier, drafter, verifier_returns=True, observers=[lambda event, now_s: happened.append(event)]
    )
    async with pipeline, asyncio.timeout(60):
        slot = verifier_slot(pipeline, FakeConnector(verifier, drafter))
        running = asyncio.create_task(slot.run(verifier))
        sinks = submit_all(pipeline)
        await until(lambda: len(sinks[0].tokens) > 10)
        seats = {request.id: request.batch for request in pipeline.scheduler.requests.values()}
        verifier.give_up("killed")
        await until(lambda: slot.state is SlotState.LOST)
        before = [len(sink.tokens) for sink in sinks]
        late = Collector()
        pipeline.submit(NewRequest((7, 7), SamplingParams(max_new_tokens=5)), late)
        for _ in range(200):
            await asyncio.sleep(0)
        assert [len(sink.tokens) for sink in sinks] == before, "nobody can say what follows"
        assert {r.id: r.batch for r in pipeline.scheduler.requests.values() if r.id in seats} == seats
        first = len(verifier.commands)
        verifier.is_back = True
        await asyncio.gather(*(sink.done.wait() for sink in [*sinks, late]))
        assert [sink.tokens for sink in sinks] == [continuation(prompt, 60) for prompt in PROMPTS]
        assert late.tokens == continuation((7, 7), 5)
        assert verifier.commands[first].spans[0].prefix_len == 0, "recomputed, as after a preemption"
        assert slot.state is SlotState.READY
        left = [event for event in happened if isinstance(event, events.WorkerLeft)]
        joined = [event for event in happened if isinstance(event, events.WorkerJoined)]
        assert [(event.role, event.cause) for event in left] == [(Role.VERIFIER, "verifier: killed")]
        assert [event.info.role for event in joined] == [Role.VERIFIER, Role.DRAFTER, Role.VERIFIER]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert verifier.lost_error is not None, "the slot closes the link that it has"


async def test_the_drafter_keeps_what_it_holds_while_the_verifier_is_away() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    async with (
        CountedPipeline(LIMITS, verifier, drafter, verifier_returns=True) as pipeline,
        asyncio.timeout(60),
    ):
        sinks = submit_all(pipeline)
        await until(lambda: all(len(sink.tokens) > 5 for sink in sinks[:4]))
        introduced = {span.request_id for command in drafter.commands for span in command.spans if span.spec}
        pipeline.lose_verifier(WorkerLost("verifier: killed"))
        num_commands = len(drafter.commands)
        pipeline.gain_verifier(FakeVerifier())
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        again = {span.request_id for command in drafter.commands[num_commands:] for span in command.spans if span.spec}
        assert not again & introduced, "no prompt is sent to the drafter twice"
        assert [sink.tokens for sink in sinks] == [continuation(prompt, 60) for prompt in PROMPTS]


async def test_a_request_that_the_verifier_that_came_back_cannot_hold_ends_and_nobody_else() -> None:
    verifier = FakeVerifier()
    async with CountedPipeline(LIMITS, verifier, None, verifier_returns=True) as pipeline, asyncio.timeout(60):
        long, short, queued = Collector(), Collector(), Collector()
        pipeline.submit(NewRequest((1, 2), SamplingParams(max_new_tokens=100)), long)
        pipeline.submit(NewRequest((3, 4), SamplingParams(max_new_tokens=20)), short)
        await until(lambda: bool(long.tokens and short.tokens))
        pipeline.lose_verifier(WorkerLost("verifier: killed"))
        pipeline.submit(NewRequest((5, 6), SamplingParams(max_new_tokens=100)), queued)
        pipeline.gain_verifier(FakeVerifier(num_blocks=10, block_size=4))
        await asyncio.gather(long.done.wait(), short.done.wait(), queued.done.wait())
        for sink in (long, queued):
            assert isinstance(sink.error, InternalError)
            assert "holds 40 tokens, the request may need 102" in str(sink.error)
        assert short.tokens == continuation((3, 4), 20)


@pytest.mark.parametrize("changes", [{"vocab_size": VOCAB_SIZE + 1}, {"feature_layers": (1,)}, {"feature_size": 2}])
async def test_a_verifier_that_cannot_go_on_is_not_taken_and_its_link_is_closed(changes: dict[str, Any]) -> None:
    """It has another vocabulary, or not the features that the drafter reads."""
    verifier, other = FakeVerifier(), FakeVerifier()
    other.info = replace(other.info, **changes)
    drafter = FakeDrafter(reads_features=True)
    async with CountedPipeline(LIMITS, verifier, drafter, verifier_returns=True) as pipeline, asyncio.timeout(60):
        connector = FakeConnector(other, FakeDrafter())
        other.is_back = True
        slot = verifier_slot(pipeline, connector)
        running = asyncio.create_task(slot.run(verifier))
        verifier.give_up("killed")
        await until(lambda: other.lost_error is not None)
        assert slot.state is SlotState.LOST
        assert not pipeline.has_verifier
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_drafter_that_comes_and_goes_costs_nobody_a_token() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    async with CountedPipeline(LIMITS, verifier, drafter) as pipeline, asyncio.timeout(60):
        slot = drafter_slot(pipeline, FakeConnector(verifier, drafter))
        running = asyncio.create_task(slot.run(drafter))
        sinks = submit_all(pipeline)
        drafter.is_back = True
        for _ in range(3):
            drafter.give_up("killed")
            await until(lambda: slot.state is SlotState.LOST)
            await until(lambda: slot.state is SlotState.READY)
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert [sink.tokens for sink in sinks] == [continuation(prompt, 60) for prompt in PROMPTS]
        assert pipeline.counters.lost_workers == 3
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_verifier_that_may_not_return_ends_everything() -> None:
    verifier = FakeVerifier()
    async with CountedPipeline(LIMITS, verifier, None) as pipeline, asyncio.timeout(60):
        sinks = submit_all(pipeline)
        verifier.error = WorkerLost("verifier: killed")
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert pipeline.failure is not None
        assert all(sink.error is pipeline.failure for sink in sinks)


async def test_a_request_that_is_recomputed_is_not_kept_waiting_by_those_that_never_had_a_seat() -> None:
    """The seated request owns nothing of the new verifier yet: what it lacks is not free for newcomers."""
    limits = SchedulerLimits(Mode.AR, 4, 0, 64, max_waiting=9, max_model_len=64)
    async with CountedPipeline(limits, FakeVerifier(13, 4, 64), None, verifier_returns=True) as pipeline:
        big, others, prompt = Collector(), [Collector(), Collector()], tuple(range(1, 31))
        pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=20)), big)
        await until(lambda: len(big.tokens) >= 6)
        for sink in others:
            pipeline.submit(NewRequest(tuple(range(20)), SamplingParams(max_new_tokens=4)), sink)
        pipeline.lose_verifier(WorkerLost("verifier: killed"))
        pipeline.gain_verifier(FakeVerifier(13, 4, 64))
        async with asyncio.timeout(60):
            await asyncio.gather(*(sink.done.wait() for sink in [big, *others]))
        assert big.tokens == continuation(prompt, 20)
        assert pipeline.counters.preemptions < 5


async def test_a_release_that_the_verifier_refuses_is_sent_again() -> None:
    verifier = FakeVerifier()
    async with CountedPipeline(LIMITS, verifier, None, verifier_returns=True) as pipeline, asyncio.timeout(60):
        sink = Collector()
        pipeline.submit(NewRequest((1, 2), SamplingParams(max_new_tokens=30)), sink)
        await until(lambda: bool(sink.tokens))
        verifier.error = ProtocolError("verifier's reply: nonsense")
        for request_id in list(pipeline.scheduler.requests):
            pipeline.abort(request_id)
        await until(lambda: pipeline.counters.failed_commands > 0)
        verifier.error = None
        await answer_all(pipeline, PROMPTS[:2])
        await until(lambda: not verifier.kv.tokens)
        assert pipeline.failure is None


async def test_an_observer_that_fails_is_dropped_and_everything_goes_on() -> None:
    num_seen = 0

    def fail(event: events.Event, now_s: float) -> None:
        nonlocal num_seen
        num_seen += 1
        raise KeyError("for the test")

    async with CountedPipeline(LIMITS, FakeVerifier(), FakeDrafter(), observers=[fail]) as pipeline:
        sinks = await answer_all(pipeline, PROMPTS)
        assert [sink.tokens for sink in sinks] == [continuation(prompt, 20) for prompt in PROMPTS]
        assert pipeline.counters.finished == len(PROMPTS), "those after it hear everything"
    assert num_seen == 1


async def test_the_end_of_everything_is_told_to_observers_too() -> None:
    happened: list[events.Event] = []
    verifier = FakeVerifier()
    async with (
        CountedPipeline(
            LIMITS, verifier, FakeDrafter(), observers=[lambda event, now_s: happened.append(event)]
        ) as pipeline,
        asyncio.timeout(60),
    ):
        sinks = submit_all(pipeline)
        await until(lambda: bool(sinks[0].tokens))
        verifier.error = WorkerLost("verifier: killed")
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
    planned = {event.number for event in happened if isinstance(event, events.RoundPlanned)}
    over = {e.number for e in happened if isinstance(e, events.RoundCommitted | events.RoundAbandoned)}
    assert planned == over, "each round has an end"
    assert [e.role for e in happened if isinstance(e, events.WorkerLeft)] == [Role.VERIFIER]


async def test_who_waits_for_a_verifier_can_be_aborted_and_hears_of_the_end_of_the_service() -> None:
    verifier = FakeVerifier()
    async with CountedPipeline(LIMITS, verifier, FakeDrafter(), verifier_returns=True) as pipeline, asyncio.timeout(60):
        sinks = submit_all(pipeline)
        await until(lambda: bool(sinks[0].tokens))
        pipeline.lose_verifier(WorkerLost("verifier: killed"))
        await until(lambda: not any(request.in_round for request in pipeline.scheduler.requests.values()))
        assert pipeline.abort(1)
        assert sinks[0].reason is FinishReason.ABORT
        assert not any(sink.done.is_set() for sink in sinks[1:])
    assert all(isinstance(sink.error, Draining) for sink in sinks[1:])


def test_a_drafter_must_be_able_to_read_what_the_verifier_has() -> None:
    verifier, drafter = FakeVerifier().info, FakeDrafter(reads_features=True).info
    slots.check_drafter(drafter, verifier)
    slots.check_drafter(FakeDrafter().info, replace(verifier, feature_layers=(), feature_size=0))
    for wrong, limit in [
        (replace(verifier, feature_layers=(1,)), r"it reads layers \[3\] of its target, which fake cannot deliver"),
        (replace(verifier, feature_size=5), "it reads 2 numbers for each token, fake has 10"),
        (replace(verifier, vocab_fingerprint="other"), "its tokenizer differs"),
    ]:
        with pytest.raises(ModelError, match=limit):
            slots.check_drafter(drafter, wrong)


async def test_a_head_does_not_take_the_place_of_a_lost_draft_model_in_pearl(caplog: pytest.LogCaptureFixture) -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    pipeline = CountedPipeline(replace(LIMITS, mode=Mode.PEARL), verifier, drafter)
    async with pipeline, asyncio.timeout(60):
        running = asyncio.create_task(drafter_slot(pipeline, FakeConnector(verifier, drafter)).run(drafter))
        drafter.give_up("killed")
        drafter.info = replace(drafter.info, draft_method=DraftMethod.EAGLE, model_name="a-head")
        drafter.is_back = True
        await until(lambda: "drafter not back yet: mode is 'pearl': a head reads" in caplog.text)
        assert pipeline.drafter is None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
