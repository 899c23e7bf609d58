"""Health and reflection as standard clients see them, with workers that have no model behind the service."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import ConfigErrors, Draining
from minedraft.rpc.health import INFERENCE_SERVICE, LIVE, NOT_SERVING, SERVING
from minedraft.settings.loading import load_settings
from tests.fakes.service import fake_service


async def test_a_watch_sees_the_end_of_readiness_before_any_request_is_refused(tmp_path: Path) -> None:
    async with (
        fake_service(tmp_path) as service,
        grpc.aio.insecure_channel(service.address) as channel,
        AsyncClient(service.address) as client,
        asyncio.timeout(60),
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE))
        assert (await watch.read()).status == SERVING
        gate = asyncio.get_running_loop().create_future()
        service.verifier.hold = lambda: gate  # a live request keeps the drain going
        answer = asyncio.create_task(client.complete([1, 2, 3], SamplingParams(max_new_tokens=8)))
        await service.until(lambda: service.server.pipeline.scheduler.requests)
        order: list[str] = []

        async def see_the_watch() -> None:
            assert (await watch.read()).status == NOT_SERVING
            order.append("not serving")

        seeing = asyncio.create_task(see_the_watch())
        service.server.on_signal()
        await seeing
        with pytest.raises(Draining):
            await client.complete([4], SamplingParams(max_new_tokens=1))
        order.append("refused")
        assert order == ["not serving", "refused"]
        assert (await health.Check(health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE))).status == NOT_SERVING
        gate.set_result(None)
        assert len((await answer).token_ids) == 8


async def test_without_its_drafter_the_service_is_ready_and_says_that_it_is_degraded(tmp_path: Path) -> None:
    async with (
        fake_service(tmp_path) as service,
        grpc.aio.insecure_channel(service.address) as channel,
        AsyncClient(service.address) as client,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        assert (await client.status()).state == "serving"
        service.drafter.give_up("killed")
        await service.until(lambda: service.server.pipeline.drafter is None)
        assert (await client.status()).state == "degraded"
        for name in (LIVE, INFERENCE_SERVICE):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="minedraft.v1.Other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_without_its_verifier_the_service_is_not_ready_until_it_is_back(tmp_path: Path) -> None:
    async with (
        fake_service(tmp_path) as service,
        grpc.aio.insecure_channel(service.address) as channel,
        asyncio.timeout(60),
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE))
        assert (await watch.read()).status == SERVING
        service.verifier.is_back = True
        service.verifier.give_up("killed")
        assert (await watch.read()).status == NOT_SERVING
        assert (await watch.read()).status == SERVING


async def reflected(
    address: str, request: reflection_pb2.ServerReflectionRequest
) -> reflection_pb2.ServerReflectionResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        reply = await call.read()
        with suppress(asyncio.CancelledError):
            call.cancel()
        return reply


async def test_with_reflection_the_service_describes_its_api(tmp_path: Path) -> None:
    async with fake_service(tmp_path, reflection=True) as service:
        reply = await reflected(service.address, reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {entry.name for entry in reply.list_services_response.service}
        assert names == {INFERENCE_SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=INFERENCE_SERVICE)
        found = (await reflected(service.address, asked)).file_descriptor_response.file_descriptor_proto
        files = [FileDescriptorProto.FromString(data) for data in found]
        methods = {method.name for file in files for part in file.service for method in part.method}
        assert {"Generate", "Abort", "GetStatus"} <= methods


async def test_by_default_there_is_no_reflection(tmp_path: Path) -> None:
    async with fake_service(tmp_path) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(service.address, reflection_pb2.ServerReflectionRequest(list_services=""))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_is_refused_at_a_public_address() -> None:
    with pytest.raises(ConfigErrors, match="reflection is True: only at an address of this host"):
        load_settings({"reflection": True, "listen": "0.0.0.0:7000"})
