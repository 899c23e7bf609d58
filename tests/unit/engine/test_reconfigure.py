"""Limits change under load: nobody is refused or lost, and nobody is left asleep."""

from __future__ import annotations

import asyncio
import random

import pytest

from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import ModeDecision
from minedraft.core.request import NewRequest, Request
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import Unavailable, WorkerLost
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch, FinishReason, Mode
from scripts.lib.sink import Collector
from tests.fakes.policies import AnyDraftPolicy, RestlessMode
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline
from tests.support.stepping import until

ONE = SchedulerLimits(Mode.SD, 1, 3, max_model_len=128)
TWO = SchedulerLimits(Mode.MINEDRAFT, 1, 3, max_model_len=128)


class Holder:
    """Holds every verify back until it is let go."""

    def __init__(self, verifier: FakeVerifier) -> None:
        self.num_held = 0
        self._gate = asyncio.get_running_loop().create_future()
        verifier.hold = self._hold

    def _hold(self) -> asyncio.Future[None]:
        self.num_held += 1
        return asyncio.shield(self._gate)

    def let_go(self) -> None:
        self._gate.set_result(None)


def submit(pipeline: Pipeline, first_token: int, num_tokens: int = 20) -> tuple[int, Collector]:
    sink = Collector()
    new = NewRequest((first_token, 3), SamplingParams(max_new_tokens=num_tokens))
    return pipeline.submit(new, sink), sink


async def test_a_second_batch_opens_at_once_and_who_decodes_goes_on() -> None:
    verifier = FakeVerifier()
    holder = Holder(verifier)
    async with Pipeline(ONE, verifier, FakeDrafter()) as pipeline, asyncio.timeout(60):
        _, running = submit(pipeline, 1)
        await until(lambda: holder.num_held == 1)
        waiting = [submit(pipeline, n)[1] for n in (2, 3, 4)]
        pipeline.reconfigure(TWO)
        late = submit(pipeline, 5)[1]
        await pipeline.settled()
        await until(lambda: holder.num_held == 2)
        assert not running.done.is_set(), "nobody had to end first"
        holder.let_go()
        for n, sink in enumerate([running, *waiting, late], start=1):
            await sink.done.wait()
            assert sink.tokens == continuation((n, 3), 20)


async def test_members_of_a_batch_that_closes_move_at_their_own_round_boundary() -> None:
    """Both verifies are held: batch B can give its member away only when its own round is committed."""
    verifier = FakeVerifier()
    holder = Holder(verifier)
    wide = SchedulerLimits(Mode.SD, 2, 3, max_model_len=128)
    async with Pipeline(TWO, verifier, FakeDrafter()) as pipeline, asyncio.timeout(60):
        sinks = [submit(pipeline, n)[1] for n in (1, 2)]
        await until(lambda: holder.num_held == 2)
        pipeline.reconfigure(wide)
        assert [pipeline.scheduler.batches.size(batch) for batch in Batch] == [1, 1]
        holder.let_go()
        await pipeline.settled()
        assert [pipeline.scheduler.batches.size(batch) for batch in Batch] == [2, 0]
        assert not any(sink.done.is_set() for sink in sinks)
        for n, sink in enumerate(sinks, start=1):
            await sink.done.wait()
            assert sink.tokens == continuation((n, 3), 20)


async def test_a_batch_that_closes_goes_on_while_the_other_has_no_seat() -> None:
    """The change is in force when the first of the two has ended; until then both decode."""
    async with Pipeline(TWO, FakeVerifier(), FakeDrafter()) as pipeline, asyncio.timeout(60):
        short, long = submit(pipeline, 1, 10)[1], submit(pipeline, 2, 60)[1]
        await until(lambda: bool(short.tokens and long.tokens))
        pipeline.reconfigure(ONE)
        settled = asyncio.create_task(pipeline.settled())
        before = len(long.tokens)
        await until(lambda: len(long.tokens) > before or long.done.is_set())
        assert not settled.done() or short.done.is_set()
        await settled
        assert short.done.is_set() != long.done.is_set()
        await long.done.wait()
        assert short.tokens == continuation((1, 3), 10)
        assert long.tokens == continuation((2, 3), 60)


async def test_both_batches_run_as_soon_as_there_are_two() -> None:
    """With one batch the second lane sleeps, and the new seats are given out by the first."""
    verifier = FakeVerifier()
    holder = Holder(verifier)
    async with Pipeline(ONE, verifier, FakeDrafter()) as pipeline, asyncio.timeout(60):
        _, running = submit(pipeline, 1, 1)
        await until(lambda: holder.num_held == 1)
        waiting = [submit(pipeline, n)[1] for n in (2, 3)]
        pipeline.reconfigure(TWO)
        holder.let_go()
        holder = Holder(verifier)
        await running.done.wait()
        await until(lambda: holder.num_held == 2)
        holder.let_go()
        await asyncio.gather(*(sink.done.wait() for sink in waiting))


async def test_a_request_that_waits_for_the_change_can_be_aborted() -> None:
    verifier = FakeVerifier()
    holder = Holder(verifier)
    async with Pipeline(ONE, verifier, None) as pipeline, asyncio.timeout(60):
        submit(pipeline, 1)
        await until(lambda: holder.num_held == 1)
        pipeline.reconfigure(TWO)
        waiting, sink = submit(pipeline, 2)
        assert pipeline.abort(waiting)
        assert sink.reason is FinishReason.ABORT
        holder.let_go()
        await pipeline.settled()
        await pipeline.drain()


async def test_load_without_end_does_not_hold_the_change_up() -> None:
    async with Pipeline(ONE, FakeVerifier(), FakeDrafter()) as pipeline, asyncio.timeout(60):
        sinks: list[Collector] = []

        async def ask_again_and_again() -> None:
            while pipeline.scheduler.limits is ONE:
                sinks.append(submit(pipeline, len(sinks) + 1)[1])
                await sinks[-1].done.wait()

        askers = [asyncio.create_task(ask_again_and_again()) for _ in range(4)]
        await until(lambda: len(sinks) > 20)
        pipeline.reconfigure(TWO)
        await pipeline.settled()
        await asyncio.gather(*askers)
        for n, sink in enumerate(sinks, start=1):
            assert sink.tokens == continuation((n, 3), 20)


async def test_a_request_preempted_meanwhile_does_not_hold_the_change_up() -> None:
    """It waits for memory without a seat, and no command is on its way that would wake anybody."""
    verifier = FakeVerifier(num_blocks=12, block_size=4)
    limits = SchedulerLimits(Mode.AR, 2, 0, max_model_len=48)
    async with Pipeline(limits, verifier, None) as pipeline, asyncio.timeout(60):
        sinks = [submit(pipeline, n, 40)[1] for n in (1, 2)]
        await until(lambda: all(sink.tokens for sink in sinks))
        pipeline.reconfigure(TWO)
        await pipeline.settled()
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert [sink.tokens for sink in sinks] == [continuation((n, 3), 40) for n in (1, 2)]


async def test_when_the_verifier_is_lost_nobody_waits_for_the_change() -> None:
    verifier = FakeVerifier()
    holder = Holder(verifier)
    async with Pipeline(TWO, verifier, None) as pipeline, asyncio.timeout(60):
        submit(pipeline, 1), submit(pipeline, 2)
        await until(lambda: holder.num_held == 2)
        pipeline.reconfigure(ONE)
        waiting = asyncio.create_task(pipeline.settled())
        await asyncio.sleep(0)
        pipeline.fail(WorkerLost("verifier: connection closed"))
        with pytest.raises(Unavailable, match="connection closed"):
            await waiting


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_when_everybody_is_answered(seed: int) -> None:
    rng = random.Random(seed)
    async with Pipeline(ONE, FakeVerifier(), FakeDrafter()) as pipeline, asyncio.timeout(60):
        sinks: dict[int, tuple[int, Collector]] = {}
        for n in range(1, 60):
            match rng.randrange(5):
                case 0:
                    mode, size, draft_len = rng.choice(list(Mode)), rng.randint(1, 3), rng.randint(1, 4)
                    pipeline.reconfigure(SchedulerLimits(mode, size, draft_len, max_model_len=128))
                case 1 if sinks:
                    pipeline.abort(rng.choice(list(sinks)))
                case _:
                    request_id, sink = submit(pipeline, n, rng.randint(1, 20))
                    sinks[request_id] = n, sink
            for _ in range(rng.choice([0, 0, 1, 3, 30])):
                await asyncio.sleep(0)
        await pipeline.settled()
        await pipeline.drain()
        for n, sink in sinks.values():
            assert sink.reason in (FinishReason.LENGTH, FinishReason.ABORT)
            assert sink.tokens == continuation((n, 3), len(sink.tokens))


async def test_a_mode_policy_switches_as_it_likes_and_is_not_asked_during_a_loan() -> None:
    policy = RestlessMode(period=3)
    pipeline = CountedPipeline(TWO, FakeVerifier(), FakeDrafter(), mode_policy=policy, draft_policy=AnyDraftPolicy(3))
    async with pipeline, asyncio.timeout(60):
        sinks = [submit(pipeline, n)[1] for n in range(1, 40)]
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert [sink.tokens for sink in sinks] == [continuation((n, 3), 20) for n in range(1, 40)]
        assert {change.mode for change in policy.changes} == set(Mode)
        assert pipeline.counters.finished == 39, "counts go on over every change"
        pipeline.is_lent = True
        pipeline.reconfigure(ONE)
        await pipeline.settled()
        more = [submit(pipeline, n)[1] for n in range(1, 9)]
        await asyncio.gather(*(sink.done.wait() for sink in more))
        assert pipeline.scheduler.limits is ONE


async def test_a_policy_that_fails_is_replaced_and_its_cause_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(RestlessMode, AnyDraftPolicy):
        def __init__(self) -> None:
            RestlessMode.__init__(self, 3)

        def wanted(self, now_s: float) -> ModeDecision | None:
            raise KeyError("no mode")

        def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
            raise KeyError("no length")

    broken = Broken()
    pipeline = CountedPipeline(TWO, FakeVerifier(), FakeDrafter(), mode_policy=broken, draft_policy=broken)
    async with pipeline, asyncio.timeout(60):
        sinks = [submit(pipeline, n)[1] for n in range(1, 8)]
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert [sink.tokens for sink in sinks] == [continuation((n, 3), 20) for n in range(1, 8)]
        assert pipeline.counters.accepted_drafts > 0, "the fixed policy drafts"
    told = [record.getMessage() for record in caplog.records if "a policy failed" in record.getMessage()]
    assert sorted(message.rsplit(": ", 1)[1] for message in told) == ["'no length'", "'no mode'"]
