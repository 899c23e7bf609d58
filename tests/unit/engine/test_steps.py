"""Rounds of several decode steps in the pipeline: what sinks see of them, and who ends them early."""

from __future__ import annotations

import asyncio

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.engine.pipeline import Pipeline
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason, Mode
from scripts.lib.sink import Collector
from tests.fakes.workers import FakeVerifier, continuation
from tests.support.stepping import until

LIMITS = SchedulerLimits(Mode.AR, 4, max_model_len=128, max_steps=4)
PROMPT = (9, 8)
LONG = SamplingParams(max_new_tokens=100)


async def test_a_stop_string_found_in_a_step_hides_the_later_ones() -> None:
    async with Pipeline(LIMITS, verifier := FakeVerifier(), None) as pipeline:
        sink = Collector(stop_after=7)  # the first token comes alone, then four, then the second of four
        pipeline.submit(NewRequest(PROMPT, LONG), sink)
        await asyncio.wait_for(sink.done.wait(), 5)
        assert sink.reason is FinishReason.STOP
        assert sink.tokens == continuation(PROMPT, 7)
        await until(lambda: verifier.kv.pool.num_free == verifier.info.num_blocks)


async def test_a_newcomer_ends_the_steps_of_the_rounds_that_are_sent_and_no_more_of_them_than_once() -> None:
    verifier, curtailed = FakeVerifier(), list[int]()
    gates: list[asyncio.Future[None]] = []

    def hold() -> asyncio.Future[None]:
        gates.append(asyncio.get_running_loop().create_future())
        return gates[-1]

    async with Pipeline(LIMITS, verifier, None) as pipeline:
        sinks = [Collector() for _ in range(3)]
        pipeline.submit(NewRequest(PROMPT, LONG), sinks[0])
        assert not curtailed
        await until(lambda: len(sinks[0].tokens) > 20)
        verifier.hold, curtail = hold, verifier.curtail
        verifier.curtail = lambda number: curtailed.append(number) or curtail(number)  # type: ignore[method-assign]
        await until(lambda: bool(gates))  # the next command is in the verifier
        num_forwards, num_tokens = len(verifier.commands), len(sinks[0].tokens)
        for sink in sinks[1:]:
            pipeline.submit(NewRequest(PROMPT, SamplingParams(max_new_tokens=5)), sink)
        assert len(curtailed) == 1
        verifier.hold = None
        for gate in gates:
            gate.set_result(None)
        await asyncio.gather(*(asyncio.wait_for(sink.done.wait(), 5) for sink in sinks[1:]))
        joined = next(index for index, command in enumerate(verifier.commands) if len(command.spans) > 1)
        assert joined == num_forwards + 1, "one step more, and then the newcomers"
        assert len(sinks[0].tokens) > num_tokens
        await asyncio.wait_for(sinks[0].done.wait(), 5)
        assert [sink.tokens for sink in sinks] == [continuation(PROMPT, n) for n in (100, 5, 5)]
