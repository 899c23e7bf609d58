"""The scheduler's server from its start to its end, with workers that have no model behind it."""

from dataclasses import replace

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import ConfigError
from minedraft.rpc.health import INFERENCE_SERVICE, SERVING
from minedraft.types import DraftMethod
from tests.fakes.service import fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier


async def test_a_context_that_the_verifier_does_not_serve_is_refused(tmp_path):
    async with fake_service(tmp_path, verifier=FakeVerifier(num_blocks=8), max_model_len=4096) as service:
        with pytest.raises(ConfigError, match=r"max_model_len is 4096: the verifier at .* serves \d+ tokens"):
            await service.task


@pytest.mark.parametrize(("context_len", "draft_len"), [(8, 3), (19, 16)])
async def test_the_first_generation_fits_the_smallest_memory_and_drafts(tmp_path, context_len, draft_len):
    verifier, drafter = FakeVerifier(context_len, 1, 4096), FakeDrafter(context_len, 1, 4096)
    async with fake_service(tmp_path, verifier=verifier, drafter=drafter, draft_len=draft_len) as service:
        assert service.server.service.state == "serving"
        assert max(len(span.drafts) for command in verifier.commands for span in command.spans) == draft_len


async def test_who_watches_the_health_is_sent_away_when_the_service_ends(tmp_path):
    async with fake_service(tmp_path) as service, grpc.aio.insecure_channel(service.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE))
        async for reply in watch:
            if reply.status == SERVING:
                service.server.on_signal()
        assert await watch.code() is grpc.StatusCode.OK


async def test_a_drafter_that_is_not_there_at_the_start_is_taken_when_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("minedraft.server.composition._DRAFTER_PATIENCE_S", 0.05)
    drafter = FakeDrafter()
    drafter.give_up("never started")
    async with fake_service(tmp_path, drafter=drafter) as service, AsyncClient(service.address) as client:
        assert (await client.status()).state == "degraded"
        assert (await client.complete([1, 2, 3], SamplingParams(max_new_tokens=8))).token_ids
        drafter.is_back = True
        await service.until(lambda: service.server.service.state == "serving")
        answer = await client.complete([1, 2, 3], SamplingParams(max_new_tokens=8))
        assert answer.usage.accepted_tokens > 0


async def test_a_head_that_runs_elsewhere_is_refused_in_pearl(tmp_path):
    head = FakeDrafter()
    head.info = replace(head.info, draft_method=DraftMethod.EAGLE, model_name="a-head")
    async with fake_service(tmp_path, drafter=head, mode="pearl") as service:
        with pytest.raises(ConfigError, match=r"mode is 'pearl': a head reads what .* \(a-head drafts\)"):
            await service.task
