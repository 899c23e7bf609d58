"""A drafter that is late costs its round the drafts and nothing else, in virtual time: the verify does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeVar

import pytest

from minedraft.core.limits import SchedulerLimits
from minedraft.core.liveness.patience import FIRST_PATIENCE_S, LEAST_PATIENCE_S, DraftPatience
from minedraft.core.request import NewRequest
from minedraft.messages import DraftCommand, DraftReply, VerifyCommand, VerifyReply
from minedraft.sampling_params import SamplingParams
from minedraft.sim.virtual_time import run_virtual
from minedraft.types import Mode
from scripts.lib.sink import Collector
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline

T = TypeVar("T")
STEP_S = 0.01


class SleepyDrafter(FakeDrafter):
    """Takes `STEP_S` for a command; from command `first_late` on, one takes `late_s`. As a real worker does, it
    executes also what nobody waits for any more, all commands in their order."""

    def __init__(self, first_late: int, late_s: float, *, reads_features: bool = False, num_late: int = 1) -> None:
        super().__init__(reads_features=reads_features)
        self.first_late, self.late_s, self.num_late = first_late, late_s, num_late
        self.num_taken = 0
        self._device = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()

    async def draft(self, command: DraftCommand) -> DraftReply:
        return await self._execute(lambda: super(SleepyDrafter, self).draft(command))

    async def prefill(self, command: DraftCommand) -> DraftReply:
        return await self._execute(lambda: super(SleepyDrafter, self).prefill(command))

    async def release(self, request_ids: object) -> int:
        return await self._execute(lambda: super(SleepyDrafter, self).release(request_ids))  # type: ignore[arg-type]

    async def _execute(self, run: Callable[[], Awaitable[T]]) -> T:
        number, self.num_taken = self.num_taken, self.num_taken + 1
        is_late = self.first_late <= number < self.first_late + self.num_late

        async def execute() -> T:
            async with self._device:
                await asyncio.sleep(self.late_s if is_late else STEP_S)
                return await run()

        task = asyncio.ensure_future(execute())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)


class TimedVerifier(FakeVerifier):
    async def verify(self, command: VerifyCommand) -> VerifyReply:
        await asyncio.sleep(STEP_S)
        return await super().verify(command)


async def answer(
    drafter: FakeDrafter, mode: Mode, num_tokens: int = 100, num_requests: int = 4
) -> tuple[CountedPipeline, list[float]]:
    """Answer requests, with every token right. Return the pipeline, and when tokens came."""
    loop = asyncio.get_running_loop()
    limits = SchedulerLimits(mode, max_batch_size=2, max_model_len=128)
    moments: list[float] = []
    pipeline = CountedPipeline(
        limits, TimedVerifier(), drafter, clock=loop.time, observers=[lambda event, now_s: moments.append(now_s)]
    )
    async with pipeline:
        prompts = [(n, 3, 5) for n in range(1, 1 + num_requests)]
        sinks = [Collector() for _ in prompts]
        for prompt, sink in zip(prompts, sinks, strict=True):
            pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=num_tokens)), sink)
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
        assert [sink.tokens for sink in sinks] == [continuation(prompt, num_tokens) for prompt in prompts]
        await asyncio.sleep(60.0)
        if pipeline.drafter is not None:
            assert drafter.kv.pool.num_free == drafter.info.num_blocks, "nothing of a late command is left"
    return pipeline, moments


def longest_gap(moments: list[float]) -> float:
    return max(later - earlier for earlier, later in pairwise(moments))


@pytest.mark.parametrize("mode", [Mode.SD, Mode.MINEDRAFT, Mode.PEARL])
@pytest.mark.parametrize("reads_features", [False, True])
@pytest.mark.parametrize("first_late", [8, 9, 10, 11, 14, 19])
def test_rounds_go_on_without_drafts_and_drafts_come_back_with_the_drafter(
    mode: Mode, reads_features: bool, first_late: int
) -> None:
    async def run() -> None:
        drafter = SleepyDrafter(first_late, late_s=1.5, reads_features=reads_features)
        pipeline, moments = await answer(drafter, mode)
        assert longest_gap(moments) <= LEAST_PATIENCE_S + 5 * STEP_S
        assert (pipeline.counters.late_drafts, pipeline.counters.failed_commands) == (1, 0)
        assert pipeline.counters.lost_workers == 0

    run_virtual(run())


@pytest.mark.parametrize("mode", [Mode.SD, Mode.MINEDRAFT, Mode.PEARL])
def test_drafting_resumes_after_a_late_reply(mode: Mode) -> None:
    async def run() -> None:
        drafter = SleepyDrafter(first_late=10, late_s=1.2)
        pipeline, _ = await answer(drafter, mode, 120)
        used = pipeline.counters.accepted_drafts / pipeline.counters.output_tokens
        undisturbed, _ = await answer(SleepyDrafter(1 << 30, 0.0), mode, 120)
        assert used > 0.5 * undisturbed.counters.accepted_drafts / undisturbed.counters.output_tokens

    run_virtual(run())


def test_a_drafter_that_never_answers_holds_up_one_round_and_no_other() -> None:
    async def run() -> None:
        drafter = SleepyDrafter(first_late=10, late_s=3600.0)
        limits = SchedulerLimits(Mode.MINEDRAFT, max_batch_size=2, max_model_len=128)
        loop = asyncio.get_running_loop()
        async with CountedPipeline(limits, TimedVerifier(), drafter, clock=loop.time) as pipeline:
            for wave in range(3):  # new requests need no answer of the drafter to their releases either
                sinks = [Collector() for _ in range(4)]
                for sink in sinks:
                    pipeline.submit(NewRequest((wave, 3), SamplingParams(max_new_tokens=100)), sink)
                await asyncio.gather(*(sink.done.wait() for sink in sinks))
                assert all(sink.tokens == continuation((wave, 3), 100) for sink in sinks)
            assert loop.time() < LEAST_PATIENCE_S + 3 * 110 * 3 * STEP_S
            assert (pipeline.counters.late_drafts, pipeline.counters.failed_commands) == (1, 0)

    run_virtual(run())


def test_patience_follows_the_drafter() -> None:
    patience = DraftPatience()
    assert patience.limit_s == FIRST_PATIENCE_S
    patience.answered(0.02)
    assert patience.limit_s == LEAST_PATIENCE_S
    for _ in range(64):
        patience.answered(0.5)
    assert patience.limit_s == 5.0
    patience = DraftPatience()
    patience.answered(0.02)
    limits = []
    for _ in range(12):  # it takes three seconds from now on
        patience.late()
        limits.append(patience.limit_s)
    assert limits == sorted(limits)
    assert limits[-1] > 3.0
