"""What a request says of its own drafts holds for it alone, and changes no token."""

from __future__ import annotations

import asyncio

import pytest

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from scripts.lib.sink import Collector
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline

PROMPT_LEN = 30
WISHES = ({}, {"speculate": False}, {"draft_len": 0}, {"draft_len": 1}, {"draft_len": 2}, {"draft_len": 16})


@pytest.mark.parametrize("mode", [Mode.SD, Mode.MINEDRAFT])
async def test_each_request_has_the_drafts_that_it_allows_and_its_neighbours_theirs(mode: Mode) -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter(is_right=lambda n: True)
    limits = SchedulerLimits(mode, len(WISHES), draft_len=4, prefill_chunk=8, max_model_len=128)
    prompts = [tuple(range(n, n + PROMPT_LEN)) for n in range(len(WISHES))]
    sinks = [Collector() for _ in WISHES]
    async with CountedPipeline(limits, verifier, drafter) as pipeline, asyncio.timeout(60):
        ids = [
            pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=24, **wish)), sink)
            for prompt, wish, sink in zip(prompts, WISHES, sinks, strict=True)
        ]
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
    assert [sink.tokens for sink in sinks] == [continuation(prompt, 24) for prompt in prompts]
    lens: dict[int, set[int]] = {request_id: set() for request_id in ids}
    for command in drafter.commands:
        for span in command.spans:
            lens[span.request_id].add(span.draft_len)
    most = [max(lens[request_id], default=None) for request_id in ids]
    assert most == [4, None, None, 1, 2, 4], "None: the drafter never hears of it, not even of its prompt"
    used = [(sink.usage.drafted_tokens > 0, sink.usage.rounds) for sink in sinks]
    assert [drafted for drafted, _ in used] == [True, False, False, True, True, True]
    assert used[1] == used[2] == (False, 24), "one token a round"
    assert used[0][1] < used[4][1] < used[3][1] < 24
