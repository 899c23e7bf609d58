"""The front door over a real socket: real gRPC, real scheduler, workers without a model behind it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from minedraft import AsyncClient, Client, SamplingParams
from minedraft.errors import (
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    InvalidRequest,
    ModelError,
    Overloaded,
    Unavailable,
    WorkerLost,
)
from minedraft.types import FinishReason
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation

PROMPT = [5, 6, 7]


class Gate:
    """Holds every verify back while closed."""

    def __init__(self, verifier: FakeVerifier) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.num_waiting = 0
        verifier.hold = self._pass

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def _pass(self) -> None:
        self.num_waiting += 1
        await self._open.wait()
        self.num_waiting -= 1


@pytest.fixture
async def service(tmp_path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=512, max_model_len=2048)
    drafter = FakeDrafter(num_blocks=512, max_model_len=2048)
    async with fake_service(tmp_path, verifier=verifier, drafter=drafter, max_waiting=4, max_batch_size=2) as service:
        yield service
        await service.blocks_free()


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.address, timeout_s=60) as client:
        yield client


def greedy(num_tokens: int, **params: object) -> SamplingParams:
    return SamplingParams(max_new_tokens=num_tokens, **params)


async def test_tokens_stream_and_add_up_to_the_targets_own(client, service):
    pieces = [piece async for piece in client.generate(PROMPT, greedy(40))]
    assert len(pieces) >= 2  # the first tokens come at once
    token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
    assert token_ids == continuation(PROMPT, 40)
    assert "".join(piece.text for piece in pieces) == service.tokenizer.decode(token_ids)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    usage = pieces[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.output_tokens) == (3, 40)
    assert usage.total_s >= usage.first_token_s > 0


async def test_text_and_chat_are_tokenised_by_the_models_own_rules(client, service):
    text = await client.complete("good day", greedy(8))
    assert list(text.token_ids) == continuation(service.tokenizer.encode("good day"), 8)
    messages = [{"role": "user", "content": "good day"}]
    chat = await client.complete(messages, greedy(8))
    assert list(chat.token_ids) == continuation(service.tokenizer.encode_chat(messages), 8)


async def test_n_samples_come_each_with_its_index_and_end(client):
    answers = await client.complete_all(PROMPT, greedy(10, n=3))
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert all(list(answer.token_ids) == continuation(PROMPT, 10) for answer in answers)
    with pytest.raises(InvalidRequest, match="complete_all"):
        await client.complete(PROMPT, greedy(10, n=2))


async def test_a_stop_string_ends_the_answer_and_is_cut(client, service):
    text = service.tokenizer.decode(continuation(PROMPT, 60))
    stop = text[12:15]
    answer = await client.complete(PROMPT, greedy(60, stop=(stop,)))
    assert answer.finish_reason is FinishReason.STOP
    assert answer.text == text[: text.index(stop)]
    assert list(answer.token_ids) == continuation(PROMPT, 60)[: len(answer.token_ids)]


async def test_a_stop_token_ends_the_answer_and_stays(client):
    tokens = continuation(PROMPT, 30)
    answer = await client.complete(PROMPT, greedy(30, stop_token_ids=(tokens[9],)))
    assert list(answer.token_ids) == tokens[: tokens.index(tokens[9]) + 1]
    assert answer.finish_reason is FinishReason.STOP


async def test_leaving_the_stream_frees_the_blocks(client, service):
    stream = client.generate(PROMPT, greedy(1000))
    assert (await anext(stream)).token_ids
    await stream.aclose()
    await service.blocks_free()


async def test_cancelling_the_task_ends_the_request(client, service):
    gate = Gate(service.verifier)
    gate.close()
    task = asyncio.create_task(client.complete(PROMPT, greedy(1000)))
    await service.until(lambda: gate.num_waiting)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gate.open()
    await service.blocks_free()
    assert (await client.status()).errors == {"ABORTED": 1}


async def test_abort_by_id_ends_the_answer_with_what_there_is(client):
    stream = client.generate(PROMPT, greedy(1500), request_id="mine")
    first = await anext(stream)
    assert await client.abort("mine")
    *_, last = [piece async for piece in stream]
    assert first.request_id == "mine"
    assert last.finish_reason is FinishReason.ABORT
    assert not await client.abort("mine")


async def test_a_request_id_in_use_is_refused_and_the_first_is_unaffected(client, service):
    gate = Gate(service.verifier)
    stream = client.generate(PROMPT, greedy(300), request_id="one")
    tokens = list((await anext(stream)).token_ids)
    gate.close()
    with pytest.raises(DuplicateRequest, match="'one' is in use"):
        await client.complete(PROMPT, greedy(5), request_id="one")
    gate.open()
    tokens += [token_id async for piece in stream for token_id in piece.token_ids]
    assert tokens == continuation(PROMPT, 300)


async def test_a_deadline_ends_the_request_on_both_sides(client, service):
    gate = Gate(service.verifier)
    gate.close()
    with pytest.raises(DeadlineExceeded):
        await client.complete(PROMPT, greedy(1000), timeout_s=0.1)
    gate.open()
    await service.blocks_free()
    await service.until(lambda: service.server.service.board.status("", None).errors == {"DEADLINE_EXCEEDED": 1})


async def test_overload_is_refused_with_a_hint_and_nobody_else_suffers(client, service):
    gate = Gate(service.verifier)
    gate.close()
    limit = service.settings.max_waiting + service.settings.max_in_flight
    accepted = [asyncio.create_task(client.complete(PROMPT, greedy(20))) for _ in range(limit)]
    status = await client.status()
    while status.num_running + status.num_waiting < limit:
        status = await client.status()
    with pytest.raises(Overloaded, match=f"limit is {limit}") as caught:
        await client.complete(PROMPT, greedy(20))
    assert caught.value.retry_after_s > 0
    gate.open()
    assert {tuple(answer.token_ids) for answer in await asyncio.gather(*accepted)} == {tuple(continuation(PROMPT, 20))}


BAD_REQUESTS = [
    ([96, 97], {}, "prompt", "97"),
    (list(range(90)) * 30, {}, "prompt", "2700 tokens"),
    (PROMPT, {"max_new_tokens": 2046}, "max_new_tokens", "at most 2045 fit"),
    (PROMPT, {"stop_token_ids": (97,)}, "stop_token_ids", "below the vocabulary size 97"),
    (PROMPT, {"logit_bias": {5000: 1.0}}, "logit_bias", "below the vocabulary size 97"),
    ([{"role": "user", "content": "x" * 5000}], {}, "prompt", "tokens"),
]


async def test_a_request_id_is_free_again_for_the_client_that_left_its_stream(client, service):
    stream = client.generate(PROMPT, greedy(1500), request_id="one")
    await anext(stream)
    again = asyncio.create_task(client.complete(PROMPT, greedy(5), request_id="one"))
    await client.abort("nobody")  # a round trip: the service has seen the second call before it
    await stream.aclose()
    assert list((await again).token_ids) == continuation(PROMPT, 5)


@pytest.mark.parametrize("wrong", [{"params": {}}, {"request_id": 5}, {"timeout_s": "5"}])
async def test_what_cannot_be_sent_is_refused_by_name(client, wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        await client.complete(PROMPT, **wrong)
    with pytest.raises(InvalidRequest, match="request_id"):
        await client.abort("\ud800")


@pytest.mark.parametrize(("prompt", "params", "field", "words"), BAD_REQUESTS)
async def test_a_bad_request_is_refused_by_name_and_its_neighbour_goes_on(client, prompt, params, field, words):
    neighbour = asyncio.create_task(client.complete(PROMPT, greedy(200)))
    with pytest.raises(InvalidRequest) as caught:
        await client.complete(prompt, SamplingParams(**({"max_new_tokens": 8} | params)))
    assert caught.value.field.startswith(field)
    assert words in str(caught.value)
    assert caught.value.limit
    assert list((await neighbour).token_ids) == continuation(PROMPT, 200)


async def test_a_slow_reader_gets_everything_and_holds_up_nobody(client):
    slow = client.generate(PROMPT, greedy(1500))
    tokens = list((await anext(slow)).token_ids)
    fast = await client.complete(PROMPT, greedy(1500))
    rest = [piece async for piece in slow]
    tokens += [token_id for piece in rest for token_id in piece.token_ids]
    assert tokens == list(fast.token_ids) == continuation(PROMPT, 1500)


async def test_the_client_without_async_does_the_same(service):
    def talk() -> None:
        with Client(service.address, timeout_s=60) as client:
            assert list(client.complete(PROMPT, greedy(12)).token_ids) == continuation(PROMPT, 12)
            stream = client.generate(PROMPT, greedy(1000), request_id="sync")
            assert next(stream).token_ids
            stream.close()
            assert client.status().state == "serving"
            assert not client.abort("nobody")
            with pytest.raises(InvalidRequest, match="97") as caught:
                client.complete([97], greedy(1))
            assert caught.value.value == "97"
            for wrong in ({"params": {}}, {"request_id": 5}, {"timeout_s": "5"}):
                with pytest.raises(InvalidRequest, match=next(iter(wrong))):
                    client.complete(PROMPT, **wrong)
            with pytest.raises(InvalidRequest, match="request_id"):
                client.abort("\ud800")

    await asyncio.to_thread(talk)


async def test_status_shows_batches_workers_and_rates(client):
    await asyncio.gather(*(client.complete(PROMPT, greedy(50)) for _ in range(4)))
    status = await client.status()
    assert (status.state, status.mode, status.max_batch_size, status.draft_len) == ("serving", "minedraft", 2, 3)
    assert [batch.name for batch in status.batches] == ["A", "B"]
    assert all(batch.rounds for batch in status.batches)
    assert [worker.role for worker in status.workers] == ["drafter", "verifier"]
    assert 0 < status.vsr < 1
    assert status.output_tokens >= 200


async def test_a_lost_drafter_degrades_the_service_and_no_request_fails(client, service):
    service.drafter.error = WorkerLost("drafter is lost: killed")
    answer = await client.complete(PROMPT, greedy(50))
    assert list(answer.token_ids) == continuation(PROMPT, 50)
    status = await client.status()
    assert status.state == "degraded"
    assert [worker.state for worker in status.workers] == ["lost", "ready"]


async def test_a_drafter_that_answers_again_is_taken_back_and_drafts(client, service):
    service.drafter.give_up("stopped for a while")
    await service.until(lambda: service.server.pipeline.drafter is None)
    assert (await client.status()).state == "degraded"
    first = await client.complete(PROMPT, greedy(30))
    assert first.usage.drafted_tokens == 0
    service.drafter.is_back = True
    await service.until(lambda: service.server.pipeline.drafter is not None)
    status = await client.status()
    assert status.state == "serving"
    assert [worker.state for worker in status.workers] == ["ready", "ready"]
    again = await client.complete(PROMPT, greedy(30))
    assert again.token_ids == first.token_ids
    assert again.usage.accepted_tokens > 0


async def test_answers_wait_for_a_lost_verifier_and_so_do_new_ones(client, service):
    live = asyncio.create_task(client.complete(PROMPT, greedy(100)))
    await service.until(lambda: service.server.pipeline.scheduler.requests)
    service.verifier.give_up("killed")
    await service.until(lambda: not service.server.pipeline.has_verifier)
    assert (await client.status()).state == "recovering"
    late = asyncio.create_task(client.complete(PROMPT, greedy(9)))
    await service.until(lambda: len(service.server.pipeline.scheduler.requests) == 2)
    service.verifier.is_back = True
    assert list((await live).token_ids) == continuation(PROMPT, 100)
    assert list((await late).token_ids) == continuation(PROMPT, 9)
    status = await client.status()
    assert (status.state, status.replays, status.worker_rejoins) == ("serving", 1, 1)
    assert status.worker_losses == {"verifier:dead": 1}
    assert [worker.state for worker in status.workers] == ["ready", "ready"]


async def test_a_verifier_that_stays_away_ends_answers_with_a_hint_and_the_service_outlives_it(tmp_path):
    async with (
        fake_service(tmp_path, verifier_wait_s=0.05) as service,
        AsyncClient(service.address, timeout_s=60) as client,
    ):
        live = asyncio.create_task(client.complete(PROMPT, greedy(100)))
        await service.until(lambda: service.server.pipeline.scheduler.requests)
        service.verifier.give_up("killed")
        with pytest.raises(WorkerLost, match=r"has not come back within 0\.05 s") as caught:
            await live
        assert caught.value.retry_after_s == 5.0
        with pytest.raises(Unavailable, match="no verifier") as caught:
            await client.complete(PROMPT, greedy(9))
        assert caught.value.retry_after_s == 5.0
        service.verifier.is_back = True
        await service.until(lambda: service.server.pipeline.has_verifier)
        assert list((await client.complete(PROMPT, greedy(9))).token_ids) == continuation(PROMPT, 9)


async def test_a_service_that_cannot_go_on_fails_every_waiter_at_once_and_ends(tmp_path):
    async with fake_service(tmp_path) as service, AsyncClient(service.address, timeout_s=60) as client:
        gate = Gate(service.verifier)
        gate.close()
        waiters = [asyncio.create_task(client.complete(PROMPT, greedy(20))) for _ in range(5)]
        await service.until(lambda: len(service.server.pipeline.scheduler.requests) == 5)
        service.server.pipeline.fail(WorkerLost("verifier is lost: killed"))
        errors = await asyncio.gather(*waiters, return_exceptions=True)
        assert {type(error) for error in errors} == {WorkerLost}
        async with asyncio.timeout(60):
            with pytest.raises(WorkerLost):
                await service.task


async def test_draining_finishes_live_answers_and_refuses_new_ones(tmp_path):
    async with fake_service(tmp_path) as service, AsyncClient(service.address, timeout_s=60) as client:
        gate = Gate(service.verifier)
        gate.close()
        live = asyncio.create_task(client.complete(PROMPT, greedy(30)))
        await service.until(lambda: gate.num_waiting)
        service.server.on_signal()
        await service.until(lambda: service.server.service.state == "draining")
        with pytest.raises(Draining):
            await client.complete(PROMPT, greedy(1))
        gate.open()
        assert list((await live).token_ids) == continuation(PROMPT, 30)
        await service.task


async def test_a_second_signal_ends_live_answers_with_an_explicit_error(tmp_path):
    async with fake_service(tmp_path) as service, AsyncClient(service.address, timeout_s=60) as client:
        gate = Gate(service.verifier)
        gate.close()
        live = asyncio.create_task(client.complete(PROMPT, greedy(30)))
        await service.until(lambda: gate.num_waiting)
        service.server.on_signal()
        service.server.on_signal()
        with pytest.raises(Draining):
            await live
        await service.task


async def test_a_drain_that_takes_too_long_ends_the_rest_explicitly(tmp_path):
    async with (
        fake_service(tmp_path, drain_timeout_s=0.05) as service,
        AsyncClient(service.address, timeout_s=60) as client,
    ):
        gate = Gate(service.verifier)
        gate.close()
        live = asyncio.create_task(client.complete(PROMPT, greedy(30)))
        await service.until(lambda: gate.num_waiting)
        service.server.on_signal()
        with pytest.raises(Draining, match=r"drain_timeout_s 0\.05"):
            await live
        await service.task


async def test_a_drafter_with_another_tokenizer_is_refused(tmp_path):
    async with fake_service(tmp_path, draft_fingerprint="another") as service:
        with pytest.raises(ModelError, match="its tokenizer differs from that of the target"):
            await service.task


async def test_a_model_without_an_end_token_is_said_once_at_the_start(tmp_path, caplog):
    async with fake_service(tmp_path) as service:
        assert service.tokenizer.eos_ids == ()
    assert caplog.text.count("has no end-of-sequence token") == 1


async def test_nobody_listening_says_so(tmp_path):
    async with AsyncClient(f"unix:{tmp_path}/none.sock") as client:
        with pytest.raises(Unavailable, match="nothing listens there; minedraft-launch starts"):
            await client.complete("hi")
