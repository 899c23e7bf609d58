"""In bfloat16, through real processes: the same tokens in every mode, alone and in a crowd, at any draft length."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from minedraft import AsyncClient, SamplingParams
from minedraft.local import serve
from minedraft.models.catalogue import PAIRS, READY, ensure_pair, list_models
from minedraft.prompts import Prompt
from minedraft.types import Mode
from tests.support.native import needs_native
from tests.support.tiny_heads import make_tiny_head, soften_layers
from tests.support.tiny_models import add_noise, make_tiny_model

pytestmark = [needs_native, pytest.mark.slow, pytest.mark.timeout(600)]

HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
Way = tuple[Mode, int, int]
WAYS: list[Way] = [
    (Mode.AR, 3, 0),
    (Mode.SD, 8, 3),
    (Mode.SD, 2, 1),
    (Mode.MINEDRAFT, 1, 4),
    (Mode.MINEDRAFT, 4, 2),
    (Mode.PEARL, 3, 3),
]
PROMPTS = [[7, 9, 4], list(range(5, 60)), [3] * 20, [40, 41], list(range(200, 230)), [8, 9] * 9]
PARAMS = [
    SamplingParams(max_new_tokens=40, ignore_eos=True),
    SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.9, top_p=0.95, seed=3),
]


async def ask_all(client: AsyncClient, prompts: Sequence[Prompt], params: SamplingParams) -> list[tuple[int, ...]]:
    answers = await asyncio.gather(*(client.complete(prompt, params) for prompt in prompts))
    return [answer.token_ids for answer in answers]


async def check(
    client: AsyncClient, prompts: Sequence[Prompt], params: SamplingParams, ways: Sequence[Way] = WAYS
) -> None:
    async with client.borrow() as loan:
        await loan.configure(Mode.AR, 1, 0)
        alone = [(await client.complete(prompt, params)).token_ids for prompt in prompts]
        for mode, max_batch_size, draft_len in ways:
            await loan.configure(mode, max_batch_size, draft_len)
            # Neighbours that are aborted in the middle, and more requests than seats.
            others = [asyncio.create_task(client.complete(prompt, params)) for prompt in prompts[:3]]
            asked = asyncio.create_task(ask_all(client, prompts, params))
            await asyncio.sleep(0)
            for other in others:
                other.cancel()
            assert await asked == alone, (mode, max_batch_size, draft_len)
            await asyncio.gather(*others, return_exceptions=True)


@pytest.mark.parametrize("method", ["model", "eagle"])
async def test_tiny_models_answer_with_the_same_bits_whatever_the_mode(method: str, tmp_path: Path) -> None:
    target = add_noise(make_tiny_model(tmp_path / "t", **HEADS), 0.05)
    ways = WAYS
    if method == "eagle":
        draft, ways = (
            make_tiny_head(tmp_path / "d", soften_layers(target, 0.02), is_alike=True),
            [(Mode.MINEDRAFT, 4, 2)],
        )
    else:
        draft = add_noise(make_tiny_model(tmp_path / "d", layers=1, seed=1, **HEADS), 0.05)
    settings = {"dtype": "bfloat16", "kernels": "native", "num_blocks": 14, "prefill_chunk": 16}
    async with serve(target=target, draft=draft, allow_configure=True, max_batch_size=4, **settings) as client:
        workers = (await client.status()).workers
        assert all(worker.is_batch_invariant and worker.kernels.startswith("native ") for worker in workers)
        assert method in {worker.draft_method for worker in workers}
        for params in PARAMS:
            await check(client, PROMPTS, params, ways)
        status = await client.status()
        assert status.preemptions > 0, "14 blocks are too few for all"
        assert status.accepted_drafts > (0 if method == "model" else status.verified_drafts // 10)


@pytest.mark.skipif(
    {model.name: model.state for model in list_models()}.get(PAIRS["smollm2"].target) != READY,
    reason="the default pair is not fetched here",
)
async def test_the_default_pair_answers_with_the_same_bits_whatever_the_mode() -> None:
    pair = ensure_pair("smollm2")
    texts = json.loads((Path(__file__).parents[2] / "minedraft/assets/prompts.json").read_text())
    settings = {"dtype": "bfloat16", "kernels": "native", "allow_configure": True, "max_batch_size": 4}
    async with serve(target=pair.target, draft=pair.draft, **settings) as client:
        prompts = [[{"role": "user", "content": entry["prompt"]}] for entry in texts[:4]]
        for params in PARAMS:
            await check(client, prompts, replace(params, max_new_tokens=24), WAYS[1::2])
