"""What the front door makes of a prompt and its limits: real gRPC, real scheduler, workers without a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import InvalidRequest, ModelError, Overloaded
from minedraft.prompts import MAX_PROMPT_BYTES
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import FinishReason
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation

PROMPT = [5, 6, 7]
CHAT = [{"role": "user", "content": "good day"}]


@pytest.fixture
async def service(tmp_path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=512, max_model_len=2048)
    drafter = FakeDrafter(num_blocks=512, max_model_len=2048)
    async with fake_service(tmp_path, verifier=verifier, drafter=drafter, max_waiting=4, max_batch_size=1) as service:
        yield service


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.address, timeout_s=60) as client:
        yield client


@pytest.mark.parametrize(
    ("prompt", "num_tokens"), [(PROMPT, 128), ("good day", 128), (CHAT, 512), ([5] * 2000, 48), ("x" * 2040, 8)]
)
async def test_an_answer_without_a_limit_has_a_default_or_what_fits(client, prompt, num_tokens: int):
    answer = await client.complete(prompt)
    assert len(answer.token_ids) == num_tokens
    assert answer.finish_reason is FinishReason.LENGTH


async def test_a_limit_that_was_given_is_refused_where_it_does_not_fit(client):
    with pytest.raises(InvalidRequest, match="max_new_tokens is 49: at most 48 fit after a prompt of 2000 tokens"):
        await client.complete([5] * 2000, SamplingParams(max_new_tokens=49))


async def test_kv_memory_smaller_than_the_context_limits_prompt_and_answer(tmp_path):
    verifier = FakeVerifier(num_blocks=10, block_size=4)
    async with fake_service(tmp_path, verifier=verifier) as service, AsyncClient(service.address) as client:
        assert len((await client.complete([5] * 30)).token_ids) == 10
        with pytest.raises(InvalidRequest, match="prompt is '40 tokens': at most 39 fit"):
            await client.complete([5] * 40)


async def test_more_samples_than_there_is_room_for_are_refused_before_any_is_made(client, service):
    with pytest.raises(InvalidRequest, match="n is 7: at most 6: 2 seats and max_waiting 4"):
        await client.complete_all(PROMPT, SamplingParams(n=7))
    assert not service.verifier.kv.tokens
    assert len(await client.complete_all(PROMPT, SamplingParams(n=6, max_new_tokens=3))) == 6


async def test_the_text_of_a_special_token_is_a_stop_string_and_can_be_shown(client, service):
    tokens = continuation(PROMPT, 400)
    special_id = next(token_id for token_id in tokens if token_id in (0, 1, 2))
    special = service.tokenizer.decode([special_id], skip_special_tokens=False)
    until = tokens[: tokens.index(special_id) + 1]
    for keeps in (False, True):
        params = SamplingParams(max_new_tokens=400, stop=(special,), skip_special_tokens=not keeps)
        answer = await client.complete(PROMPT, params)
        assert list(answer.token_ids) == until
        assert answer.finish_reason is FinishReason.STOP
        assert answer.text == service.tokenizer.decode(until[:-1])
    shown = await client.complete(PROMPT, SamplingParams(max_new_tokens=400, skip_special_tokens=False))
    assert shown.text == service.tokenizer.decode(tokens, skip_special_tokens=False)
    assert special in shown.text
    with pytest.raises(InvalidRequest, match="use stop_token_ids"):
        await client.complete(PROMPT, SamplingParams(stop=(f"{special}!",)))


async def test_one_clients_long_prompts_do_not_hold_up_another_client_on_the_same_socket(client, service, monkeypatch):
    gate, count_tokens = threading.Event(), Tokenizer.count_tokens
    monkeypatch.setattr(Tokenizer, "count_tokens", lambda self, text: gate.wait(60) and count_tokens(self, text))
    async with AsyncClient(service.address, timeout_s=60) as other:
        # The service has room for six requests: one prompt is in the thread, four wait, a fifth would be too much.
        greedy = [asyncio.create_task(client.complete("x" * MAX_PROMPT_BYTES)) for _ in range(5)]
        await service.until(lambda: len(service.server.service._live) == 5)
        with pytest.raises(Overloaded, match="this client's"):
            await client.complete("x" * MAX_PROMPT_BYTES)
        assert (await other.complete("good day", SamplingParams(max_new_tokens=3))).token_ids
        long_prompt = asyncio.create_task(other.complete("x" * 1500, SamplingParams(max_new_tokens=3)))
        await service.until(lambda: long_prompt.done() or len(service.server.service._live) == 6)
        gate.set()
        assert (await long_prompt).token_ids
    assert {type(error) for error in await asyncio.gather(*greedy, return_exceptions=True)} == {InvalidRequest}


async def test_an_end_token_that_the_verifier_does_not_have_is_refused_at_the_start(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [2, 97]}')
    async with fake_service(tmp_path) as service:
        with pytest.raises(ModelError, match=r"eos_token_id 97 .*\[0, 97\)"):
            await service.task


async def test_defaults_of_the_model_that_are_not_applied_are_said_once(tmp_path, caplog):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").write_text('{"repetition_penalty": 1.3}')
    async with fake_service(tmp_path):
        pass
    file = tmp_path / "model" / "generation_config.json"
    assert [line for line in caplog.messages if str(file) in line] == [
        f"{file}: repetition_penalty 1.3 is not applied; each request sets its own sampling"
    ]
