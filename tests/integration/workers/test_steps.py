"""Several decode steps in one command give the tokens that as many commands give."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from minedraft import AsyncClient, SamplingParams
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.errors import WorkerLost
from minedraft.local import serve
from minedraft.output import Output
from minedraft.types import LoanTerms, Mode
from scripts.lib.sink import Collector
from tests.support.counted import CountedPipeline
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor
from tests.support.native import needs_native
from tests.support.stepping import until
from tests.support.tiny_models import add_noise, make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 4
EOS_ID = 2
RNG = random.Random(5)
PROMPTS = [tuple(RNG.randrange(3, 300) for _ in range(n)) for n in (1, 7, 31, 12, 4)]
GREEDY = SamplingParams(max_new_tokens=30, ignore_eos=True)
PARAMS = [
    GREEDY,
    SamplingParams(max_new_tokens=30, min_new_tokens=9),
    SamplingParams(max_new_tokens=29, temperature=0.9, top_p=0.95, seed=3, repetition_penalty=1.2, ignore_eos=True),
    SamplingParams(max_new_tokens=23, temperature=1.1, seed=8, logprobs=2, frequency_penalty=0.3, logit_bias={9: 2.0}),
]


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target") / "model", seed=1, hidden_size=64, num_attention_heads=4)


async def answer_all(client: AsyncClient, stop: str) -> list[Output]:
    """Return the answers to all prompts in all ways, while neighbours come and are aborted."""

    async def leave_early(prompt: tuple[int, ...], num_pieces: int) -> None:
        async for _ in client.generate(prompt, GREEDY):
            num_pieces -= 1
            if not num_pieces:
                return

    neighbours = [asyncio.create_task(leave_early(prompt, n)) for n, prompt in enumerate(PROMPTS[:3], start=1)]
    params = [*PARAMS, replace(GREEDY, stop=(stop,), max_new_tokens=60)]
    asked = [asyncio.create_task(client.complete(p, s)) for p, s in zip(PROMPTS, params, strict=True)]
    await neighbours[0]
    late = [asyncio.create_task(client.complete(prompt, GREEDY)) for prompt in PROMPTS[1:]]
    answers = await asyncio.gather(*asked, *late)
    await asyncio.gather(*neighbours)
    return answers


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_real_processes_give_the_same_tokens(dtype: str, target_dir: Path) -> None:
    outputs = []
    for steps in (1, STEPS):
        settings = {"mode": "ar", "dtype": dtype, "steps_per_command": steps, "max_batch_size": 16, "num_blocks": 200}
        async with serve(target_dir, **settings) as client:
            text = (await client.complete(PROMPTS[-1], replace(GREEDY, max_new_tokens=60))).text
            stop = text[len(text) // 2 :][:2]
            answers = await answer_all(client, stop)
            status = await client.status()
        assert stop not in answers[len(PARAMS)].text
        assert (status.steps > sum(batch.rounds for batch in status.batches)) is (steps > 1)
        assert all(set(answer.round_lens) == {1} for answer in answers), "no token is taken for an accepted draft"
        outputs.append([(a.token_ids, a.text, a.finish_reason, a.logprobs) for a in answers])
    assert outputs[0] == outputs[1]


def limits(max_steps: int) -> SchedulerLimits:
    return SchedulerLimits(Mode.AR, 8, 3, 24, max_model_len=512, max_steps=max_steps)


async def answer(pipeline: CountedPipeline, params: SamplingParams) -> list[list[int]]:
    answers = [Collector() for _ in PROMPTS]
    for prompt, each in zip(PROMPTS, answers, strict=True):
        pipeline.submit(NewRequest(prompt, params, 5, (EOS_ID,)), each)
    await asyncio.wait_for(asyncio.gather(*(a.done.wait() for a in answers)), 60)
    return [a.tokens for a in answers]


@pytest.mark.parametrize("params", [PARAMS[0], PARAMS[3]])
async def test_a_verifier_lost_between_steps_and_changes_of_the_mode_leave_the_tokens_unchanged(
    params: SamplingParams, target_dir: Path, tmp_path: Path
) -> None:
    params = replace(params, max_new_tokens=60)
    executor = load_executor(target_dir)
    async with CountedPipeline(limits(1), InProcessVerifier(executor), None) as pipeline:
        undisturbed = await answer(pipeline, params)
        assert pipeline.counters.further_steps == 0
    executor.release_all()
    verifier = InProcessVerifier(executor)
    draft_dir = add_noise(make_tiny_model(tmp_path / "draft", seed=1, hidden_size=64, num_attention_heads=4), 0.05)
    drafter = InProcessDrafter(load_executor(draft_dir), verifier)
    async with CountedPipeline(limits(STEPS), verifier, drafter, verifier_returns=True) as pipeline:
        answering = asyncio.create_task(answer(pipeline, params))
        await until(lambda: pipeline.counters.output_tokens >= 20)
        assert pipeline.counters.further_steps > 0
        pipeline.lose_verifier(WorkerLost("verifier: killed"))
        executor.release_all()
        pipeline.gain_verifier(InProcessVerifier(executor))
        await until(lambda: pipeline.counters.output_tokens >= 60)
        for mode, num_tokens in ((Mode.SD, 100), (Mode.AR, 130)):
            pipeline.reconfigure(pipeline.scheduler.limits.with_terms(LoanTerms(mode, 8, 3)))
            await until(lambda n=num_tokens: pipeline.counters.output_tokens >= n or answering.done())
        assert await answering == undisturbed
        assert pipeline.counters.lost_workers == 1
