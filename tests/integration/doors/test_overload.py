"""More than the service can do, over real gRPC: refusals, clients that do not read, clients that vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import Overloaded
from minedraft.rpc.health import INFERENCE_SERVICE, wait_serving
from minedraft.v1 import inference_pb2, inference_pb2_grpc
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation

PROMPT = [5, 6, 7]
UNREAD = inference_pb2.GenerateRequest(token_ids={"ids": PROMPT}, sampling={"max_new_tokens": 2000})
FLOW_CONTROL = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]


async def start(folder: Path, **settings: object) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=1024, max_model_len=4096)
    drafter = FakeDrafter(num_blocks=1024, max_model_len=4096)
    async with fake_service(folder, verifier=verifier, drafter=drafter, max_batch_size=1, **settings) as service:
        yield service
        await service.blocks_free()


@pytest.fixture(autouse=True)
def little_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minedraft.server.answers.answer.MAX_UNSENT_TOKENS", 128)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async for service in start(tmp_path, slow_client_timeout_s=3600.0, max_waiting=2, max_waiting_tokens=100):
        yield service


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[FakeService]:
    async for service in start(tmp_path, slow_client_timeout_s=0.2):
        yield service


async def test_a_client_that_does_not_read_is_paused_and_gets_everything_later(service: FakeService) -> None:
    async with (
        grpc.aio.insecure_channel(service.address, options=FLOW_CONTROL) as channel,
        AsyncClient(service.address, timeout_s=60) as client,
    ):
        call = inference_pb2_grpc.InferenceStub(channel).Generate(UNREAD)
        await call.wait_for_connection()
        scheduler = service.server.pipeline.scheduler
        await service.until(lambda: scheduler.room.paused)
        answer = await client.complete(PROMPT, SamplingParams(max_new_tokens=40))
        assert list(answer.token_ids) == continuation(PROMPT, 40)
        tokens = [token_id async for reply in call for token_id in reply.token_ids]
        assert tokens == continuation(PROMPT, 2000)


async def test_a_client_that_reads_nothing_for_too_long_loses_its_place(impatient: FakeService) -> None:
    async with grpc.aio.insecure_channel(impatient.address, options=FLOW_CONTROL) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(UNREAD)
        await call.wait_for_connection()
        board = impatient.server.service.board
        await impatient.until(lambda: board.status("", None).errors == {"OVERLOADED": 1})
        await impatient.blocks_free()
        with pytest.raises(grpc.aio.AioRpcError, match="has read nothing for") as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_tokens_that_wait_are_bounded_and_health_answers_in_spite_of_it(service: FakeService) -> None:
    gate = asyncio.Event()
    service.verifier.hold = gate.wait
    async with AsyncClient(service.address, timeout_s=60) as client:
        live = [asyncio.create_task(client.complete([5] * 60)) for _ in range(3)]
        await service.until(lambda: len(service.server.pipeline.scheduler.requests) == 3)
        with pytest.raises(Overloaded, match="this one has 60, the limit is 100") as caught:
            await client.complete([5] * 60)
        assert caught.value.retry_after_s is not None
        await wait_serving(service.settings.listen_address, INFERENCE_SERVICE)
        gate.set()
        assert [list(answer.token_ids) for answer in await asyncio.gather(*live)] == [continuation([5] * 60, 128)] * 3
