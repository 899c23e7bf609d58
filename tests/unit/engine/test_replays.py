"""The two budgets of a lost verifier: how often a request is recomputed, and how long the service waits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from minedraft.core.limits import RETRY_AFTER_LOSS_S, SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.engine import slots
from minedraft.engine.slots import check_successor, verifier_slot
from minedraft.errors import (
    InternalError,
    InvalidRequest,
    LossCause,
    ModelError,
    ReplaysExhausted,
    Unavailable,
    WorkerLost,
)
from minedraft.sampling_params import SamplingParams
from minedraft.types import Role
from scripts.lib.sink import Collector
from tests.fakes.service import FakeConnector
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline
from tests.support.stepping import until

LIMITS = SchedulerLimits(max_batch_size=2, max_model_len=128, max_replays=2)


def submit(pipeline: CountedPipeline, prompt: tuple[int, ...] = (1, 2), num_tokens: int = 60) -> Collector:
    sink = Collector()
    pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=num_tokens)), sink)
    return sink


async def die_of_next_command(pipeline: CountedPipeline) -> None:
    """Kill the verifier with its next command and replace it."""

    def die(command: object) -> None:
        raise WorkerLost("verifier: killed")

    pipeline.verifier.refuse = die
    await until(lambda: not pipeline.has_verifier)
    pipeline.gain_verifier(FakeVerifier())


async def lose_and_return(pipeline: CountedPipeline) -> None:
    pipeline.lose_verifier(WorkerLost("verifier: killed"))
    await until(lambda: not any(request.in_round for request in pipeline.scheduler.requests.values()))
    pipeline.gain_verifier(FakeVerifier())


async def test_a_request_is_recomputed_twice_and_then_ends_with_a_hint_when_to_try_again() -> None:
    async with CountedPipeline(LIMITS, FakeVerifier(), FakeDrafter(), verifier_returns=True) as pipeline:
        async with asyncio.timeout(60):
            unlucky = submit(pipeline)
            await until(lambda: len(unlucky.tokens) > 10)
            for _ in range(2):
                await die_of_next_command(pipeline)
            young = submit(pipeline, (3, 4), 40)
            await die_of_next_command(pipeline)
            await young.done.wait()
            assert young.tokens == continuation((3, 4), 40), "it was in none of these rounds"
            assert isinstance(unlucky.error, ReplaysExhausted)
            assert "was lost 3 times while it computed this request, the last time this one alone" in str(unlucky.error)
            assert unlucky.error.retry_after_s == RETRY_AFTER_LOSS_S
            assert unlucky.error.grpc_code == "UNAVAILABLE"
            assert unlucky.tokens == continuation((1, 2), len(unlucky.tokens)), "what came before stays right"
            assert pipeline.counters.replays == 3
            assert pipeline.counters.causes == {"REPLAYS_EXHAUSTED": 1}


async def test_losses_that_come_between_requests_that_get_on_end_none_of_them() -> None:
    async with CountedPipeline(LIMITS, FakeVerifier(), FakeDrafter(), verifier_returns=True) as pipeline:
        async with asyncio.timeout(20):
            sinks = [submit(pipeline, (n, 2)) for n in (1, 3, 5)]
            for number in range(5):
                await until(lambda number=number: all(len(sink.tokens) > 9 * (number + 1) for sink in sinks))
                await lose_and_return(pipeline)
            for n, sink in zip((1, 3, 5), sinks, strict=True):
                await sink.done.wait()
                assert sink.tokens == continuation((n, 2), 60)
            assert pipeline.counters.causes == {}


async def test_who_had_no_seat_when_the_verifier_was_lost_has_lost_nothing() -> None:
    limits = replace(LIMITS, max_batch_size=1, max_replays=0, max_waiting=4)
    async with CountedPipeline(limits, FakeVerifier(), None, verifier_returns=True) as pipeline, asyncio.timeout(60):
        running = [submit(pipeline, (n, 9)) for n in (1, 2)]
        await until(lambda: all(sink.tokens for sink in running))
        waiting = submit(pipeline, (5, 6), 20)
        await die_of_next_command(pipeline)
        await waiting.done.wait()
        assert waiting.tokens == continuation((5, 6), 20)
        assert all(isinstance(sink.error, ReplaysExhausted) for sink in running)


async def test_requests_wait_so_long_and_no_longer_and_the_service_goes_on_when_the_verifier_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slots, "_FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(slots, "_LAST_RETRY_S", 0.002)
    verifier = FakeVerifier()
    async with CountedPipeline(LIMITS, verifier, None, verifier_returns=True) as pipeline, asyncio.timeout(60):
        slot = asyncio.create_task(verifier_slot(pipeline, FakeConnector(verifier, None), 0.02).run(verifier))
        sink = submit(pipeline)
        await until(lambda: bool(sink.tokens))
        verifier.give_up("killed")
        await sink.done.wait()
        assert isinstance(sink.error, WorkerLost)
        assert "has not come back within 0.02 s (verifier: killed)" in str(sink.error)
        assert sink.error.retry_after_s == RETRY_AFTER_LOSS_S
        with pytest.raises(Unavailable, match="no verifier: the verifier has not come back") as caught:
            submit(pipeline)
        assert caught.value.retry_after_s == RETRY_AFTER_LOSS_S
        assert caplog.text.count("are refused until it is back") == 1
        verifier.is_back = True
        await until(lambda: pipeline.has_verifier)
        again = submit(pipeline, (3, 4), 20)
        await again.done.wait()
        assert again.tokens == continuation((3, 4), 20)
        assert pipeline.counters.losses == {(Role.VERIFIER, LossCause.DEAD): 1}
        slot.cancel()
        await asyncio.gather(slot, return_exceptions=True)


async def test_a_verifier_that_is_away_for_long_is_not_waited_for_by_whoever_changes_the_mode() -> None:
    async with CountedPipeline(LIMITS, FakeVerifier(), None, verifier_returns=True) as pipeline, asyncio.timeout(60):
        sink = submit(pipeline)
        await until(lambda: bool(sink.tokens))
        pipeline.lose_verifier(WorkerLost("verifier: killed"))
        pipeline.reconfigure(replace(LIMITS, max_batch_size=1))
        waiting = asyncio.create_task(pipeline.settled())
        await asyncio.sleep(0)
        pipeline.stop_waiting(WorkerLost("away"))
        with pytest.raises(Unavailable, match="away"):
            await pipeline.settled()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_smaller_successor_is_told_with_both_numbers_and_goes_on_with_what_fits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with CountedPipeline(LIMITS, FakeVerifier(64), FakeDrafter(), verifier_returns=True) as pipeline:
        async with asyncio.timeout(20):
            fits, too_long = submit(pipeline, (1, 2), 60), submit(pipeline, (3, 4), 100)
            await until(lambda: min(len(fits.tokens), len(too_long.tokens)) > 3)
            pipeline.lose_verifier(WorkerLost("verifier: killed"))
            await until(lambda: not any(request.in_round for request in pipeline.scheduler.requests.values()))
            pipeline.gain_verifier(FakeVerifier(20))
            await too_long.done.wait()
            assert isinstance(too_long.error, InternalError)
            assert str(too_long.error) == "the verifier that came back holds 80 tokens, the request may need 102"
            with pytest.raises(InvalidRequest, match="KV cache holds 80 tokens"):
                submit(pipeline, (5, 6), 100)
            await fits.done.wait()
            assert fits.tokens == continuation((1, 2), 60)
            assert caplog.text.count("KV memory for 80 tokens, the last one had 256") == 1
            await lose_and_return(pipeline)  # a larger one
            assert caplog.text.count("KV memory for") == 1


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"vocab_size": VOCAB_SIZE + 1}, "its vocabulary differs from that of the last verifier"),
        ({"vocab_fingerprint": "other"}, "its vocabulary differs from that of the last verifier"),
        ({"model_name": "another"}, "the requests were begun with fake"),
        ({"dtype": "bfloat16"}, "its dtype is bfloat16, the last verifier's was "),
        ({"weights_bytes": 5}, "its weights_bytes is 5, the last verifier's was "),
        ({"max_model_len": 64}, "its context is 64 tokens, this service serves 128"),
    ],
)
def test_a_verifier_that_is_another_one_is_refused_by_name(changes: dict[str, Any], limit: str) -> None:
    last = FakeVerifier().info
    check_successor(last, last, 128)
    check_successor(replace(last, num_blocks=last.num_blocks // 2, epoch=99), last, 128)
    with pytest.raises(ModelError, match=limit):
        check_successor(replace(last, **changes), last, 128)
