"""A head in a process of its own: killed in the middle of answers and replaced, it drafts on as before. Features
travel by shared memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from minedraft import AsyncClient, SamplingParams
from minedraft.address import Address
from minedraft.local import serve
from minedraft.output import ServiceStatus
from minedraft.rpc.health import LIVE, wait_serving
from tests.support.tiny_heads import make_tiny_head, soften_layers
from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_NEW = 900
SAMPLED = SamplingParams(temperature=1.0, seed=5, n=3, max_new_tokens=24, ignore_eos=True)
PROMPTS = [[65, 54, 41, 64], list(range(5, 45))]
COMMON = {"dtype": "float32", "num_blocks": 400, "max_model_len": 1024}


async def until(client: AsyncClient, condition: Callable[[ServiceStatus], bool]) -> ServiceStatus:
    async with asyncio.timeout(100):
        while not condition(status := await client.status()):  # noqa: ASYNC110 - it is of other processes
            await asyncio.sleep(0.02)
    return status


async def test_a_killed_drafter_is_replaced_and_its_requests_draft_on(tmp_path: Path) -> None:
    target = soften_layers(make_tiny_model(tmp_path / "target", seed=3, max_position_embeddings=1024), 0.05)
    head = make_tiny_head(tmp_path / "head", target, "eagle1", is_alike=True, max_position_embeddings=1024)
    flags = ["--model", str(head), "--target", str(target)]
    flags += [word for name, value in COMMON.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    (tmp_path / "next").mkdir()
    with worker("drafter", tmp_path, *flags) as first, worker("drafter", tmp_path / "next", *flags) as second:
        own = {"mode": "minedraft", "draft_len": 3, "channel": "shm"}
        async with serve(target=target, draft_address=first.address, **own, **COMMON) as client:
            await wait_serving(Address.parse(second.address), LIVE)
            samples = [await client.complete_all(PROMPTS[1], SAMPLED)]
            params = SamplingParams(max_new_tokens=NUM_NEW, ignore_eos=True)
            answers = [asyncio.create_task(client.complete(prompt, params)) for prompt in PROMPTS]
            before = await until(client, lambda status: status.verified_drafts > 150)
            first.kill()
            first.wait()
            lost = await until(client, lambda status: status.state == "degraded")
            # The one that waits is found at the address of the first.
            os.rename(tmp_path / "next" / "drafter.sock", tmp_path / "drafter.sock")
            await until(client, lambda status: status.verified_drafts > lost.verified_drafts + 150)
            assert not any(answer.done() for answer in answers), "it drafts for those who were there before"
            tokens = [list((await answer).token_ids) for answer in answers]
            after = await client.status()
            samples.append(await client.complete_all(PROMPTS[1], SAMPLED))
    verified, accepted = (getattr(after, name) - getattr(lost, name) for name in ("verified_drafts", "accepted_drafts"))
    assert before.accepted_drafts > before.verified_drafts / 10
    assert accepted / verified > 0.8 * before.accepted_drafts / before.verified_drafts
    assert len({sample.token_ids for sample in samples[0]}) == SAMPLED.n
    assert [sample.token_ids for sample in samples[0]] == [sample.token_ids for sample in samples[1]]
    assert after.feature_bytes > before.feature_bytes > 0
    for status in (before, after):
        assert [worker.carrier for worker in status.workers] == ["shm", "shm"], "features travel by shared memory"
    model = AutoModelForCausalLM.from_pretrained(target)
    for prompt, answer in zip(PROMPTS, tokens, strict=True):
        ids = torch.tensor([prompt])
        full = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None
        )
        assert answer == full[0, len(prompt) :].tolist()
