"""Launcher, scheduler and both workers as real processes with real (tiny) models, asked by the client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from minedraft import AsyncClient, Client, SamplingParams
from minedraft.local import serve
from minedraft.types import FinishReason, Mode
from tests.support.tiny_models import add_noise, make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EOS_ID = 2
PROMPT = [65, 54, 41, 64, 48]


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target") / "model", vocab_size=70, seed=3)


@pytest.fixture(scope="module")
def address(target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    draft_dir = add_noise(make_tiny_model(tmp_path_factory.mktemp("draft") / "model", vocab_size=70, seed=3), 0.1)
    settings = {"mode": "minedraft", "draft_len": 3, "max_batch_size": 16, "num_blocks": 400, "allow_configure": True}
    service = serve(target_dir, draft_dir, dtype="float32", **settings)
    with service:
        yield service.address
    assert service.exit_code == 0


@pytest.fixture(scope="module")
def model(target_dir: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(target_dir)


@pytest.mark.parametrize("mode", list(Mode))
async def test_greedy_answers_equal_generate(address: str, model: torch.nn.Module, mode: Mode) -> None:
    prompt = torch.tensor([PROMPT])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, eos_token_id=EOS_ID
    )
    async with AsyncClient(address) as client, client.borrow() as loan:
        await loan.configure(mode, max_batch_size=16, draft_len=3)
        output = await client.complete(PROMPT, SamplingParams(max_new_tokens=32))
        assert list(output.token_ids) == expected[0, len(PROMPT) :].tolist()
        status = await client.status()
        assert (status.vsr > 0) is (mode.has_drafts)


@pytest.mark.parametrize("mode", [Mode.MINEDRAFT, Mode.PEARL])
async def test_unseeded_samples_follow_the_targets_law_through_rejection(
    address: str, model: torch.nn.Module, mode: Mode
) -> None:
    """Chi-square of 2,560 triples of tokens against their exact probabilities. The draws are those of
    the product (not seeded by the test), so the limit is set where chance exceeds it once in a million."""
    params = SamplingParams(temperature=0.9, top_k=3, max_new_tokens=4, ignore_eos=True, n=64)
    counts: Counter[tuple[int, ...]] = Counter()
    async with AsyncClient(address) as client, client.borrow() as loan:
        # With one draft, the third token often comes from drafts that were prepared for a branch, or from none.
        await loan.configure(mode, max_batch_size=16, draft_len=3 if mode is Mode.MINEDRAFT else 1, branches=3)
        for _ in range(40):
            counts.update(output.token_ids[:3] for output in await client.complete_all(PROMPT, params))
        status = await client.status()
    assert status.vsr > 0.1, "drafts took part"
    assert status.used_runs > 0 or not mode.runs_ahead
    law = exact_law(model, temperature=0.9, top_k=3, length=3)
    assert set(counts) <= set(law), "nothing outside the truncated support"
    num_samples = sum(counts.values())
    common = [triple for triple, p in law.items() if p * num_samples >= 5]
    observed = [counts[t] for t in common] + [sum(counts[t] for t in law if t not in common)]
    expected = [law[t] * num_samples for t in common] + [sum(law[t] for t in law if t not in common) * num_samples]
    if expected[-1] < 5:
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    assert stats.chisquare(observed, expected).pvalue > 1e-6


async def test_a_seeded_answer_is_the_same_in_every_mode(address: str) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_new_tokens=24, n=3)
    answers = []
    async with AsyncClient(address) as client, client.borrow() as loan:
        for mode, size, draft_len in [(Mode.AR, 4, 0), (Mode.SD, 1, 2), (Mode.MINEDRAFT, 8, 5), (Mode.PEARL, 3, 2)]:
            await loan.configure(mode, size, draft_len)
            answers.append([output.token_ids for output in await client.complete_all(PROMPT, params)])
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0])) == 3, "the samples of one seed differ from each other"


def test_stop_strings_logprobs_and_chat_work_through_the_blocking_client(address: str) -> None:
    with Client(address) as client:
        free = client.complete("hello there", SamplingParams(max_new_tokens=30, ignore_eos=True))
        stop = free.text[5:7]
        cut = client.complete("hello there", SamplingParams(max_new_tokens=30, ignore_eos=True, stop=(stop,)))
        assert cut.text == free.text[: free.text.index(stop)]
        assert cut.finish_reason is FinishReason.STOP
        chat = [{"role": "user", "content": "hi"}]
        output = client.complete(chat, SamplingParams(max_new_tokens=6, logprobs=1, ignore_eos=True))
        assert len(output.logprobs) == len(output.token_ids) == 6
        assert all(entry.top_logprobs[0] == entry.logprob for entry in output.logprobs), "greedy takes the top"


def test_when_all_is_answered_every_block_is_free(address: str) -> None:
    with Client(address) as client:
        client.complete(PROMPT, SamplingParams(max_new_tokens=3))
        status = client.status()
        while any(w.num_free_blocks != w.num_blocks for w in status.workers):
            status = client.status()
        assert status.num_running == status.num_waiting == 0


def exact_law(model: torch.nn.Module, *, temperature: float, top_k: int, length: int) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of `length` tokens after PROMPT under the truncated target."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for (prefix, p_prefix), rank in product(law.items(), range(top_k)):
            with torch.no_grad():
                logits = model(torch.tensor([[*PROMPT, *prefix]])).logits[0, -1].double() / temperature
            top = logits.topk(top_k)
            longer[(*prefix, int(top.indices[rank]))] = p_prefix * float(torch.softmax(top.values, 0)[rank])
        law = longer
    return law
