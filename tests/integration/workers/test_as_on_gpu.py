"""Both workers as on a GPU: tokens of a round stay on the device, choices are made for all requests together, and the
answers are those of plain decoding, whose choices are made one by one."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from minedraft_workers.proposers.device_loop import DeviceLoop
from minedraft_workers.sampling.sampler import Sampler
from scripts.lib.sink import Collector
from tests.support.counted import CountedPipeline
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor
from tests.support.tiny_models import add_noise, make_tiny_model

pytestmark = pytest.mark.slow

REQUESTS = [
    SamplingParams(),
    SamplingParams(logprobs=2),
    SamplingParams(temperature=0.8, seed=3),
    SamplingParams(temperature=1.2, top_p=0.8, top_k=50, seed=4, logprobs=0),
    SamplingParams(temperature=0.7, min_p=0.05, seed=5),
]
PENALIZED = [
    SamplingParams(frequency_penalty=0.8),
    SamplingParams(temperature=0.7, repetition_penalty=1.2, min_new_tokens=9, seed=5),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target") / "model", seed=1)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_noise(make_tiny_model(tmp_path_factory.mktemp("draft") / "model", seed=1), 0.03)


async def answer(pipeline: CountedPipeline, requests: list[SamplingParams]) -> list[Collector]:
    rng, answers = random.Random(5), [Collector() for _ in requests]
    for params, sink in zip(requests, answers, strict=True):
        prompt = tuple(rng.randrange(3, 300) for _ in range(rng.randint(1, 20)))
        pipeline.submit(NewRequest(prompt, replace(params, max_new_tokens=24), params.seed or 0, (2,)), sink)
    await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in answers)), 60)
    assert [sink.error for sink in answers] == [None] * len(answers)
    return answers


def limits(mode: Mode) -> SchedulerLimits:
    return SchedulerLimits(mode, 3, 4, 24, max_model_len=512)


@pytest.mark.parametrize(
    ("mode", "requests"),
    [*((mode, REQUESTS) for mode in Mode), (Mode.MINEDRAFT, [*PENALIZED, *REQUESTS[:3]])],
    ids=[*(mode.value for mode in Mode), "penalties"],
)
async def test_every_answer_is_that_of_choices_made_one_by_one(
    mode: Mode, requests: list[SamplingParams], target: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[int] = []
    draft_on_device = DeviceLoop.draft
    monkeypatch.setattr(DeviceLoop, "draft", lambda *rows: loops.append(1) or draft_on_device(*rows))
    plain = InProcessVerifier(load_executor(target), Sampler())
    async with CountedPipeline(limits(Mode.AR), plain, None) as pipeline:
        wanted = await answer(pipeline, requests)
    verifier = InProcessVerifier(load_executor(target), Sampler(is_batched=True))
    drafter = InProcessDrafter(load_executor(draft), verifier, as_on_gpu=True)
    async with CountedPipeline(limits(mode), verifier, drafter) as pipeline:
        found = await answer(pipeline, requests)
        assert bool(loops) is mode.has_drafts
        if mode.has_drafts:
            assert 0 < pipeline.counters.accepted_drafts < pipeline.counters.verified_drafts
    assert [sink.tokens for sink in found] == [sink.tokens for sink in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        for item, other in zip(mine.logprobs, theirs.logprobs, strict=True):
            assert item.top_ids == other.top_ids
            assert (item.logprob, *item.top_logprobs) == pytest.approx((other.logprob, *other.top_logprobs), abs=1e-4)
