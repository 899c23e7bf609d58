"""A client across a restart of the service: real gRPC, a real socket that goes and comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from minedraft import AsyncClient, Client, SamplingParams
from minedraft.errors import Draining, MineDraftError, Unavailable
from tests.fakes.service import fake_service
from tests.fakes.workers import FakeVerifier, continuation
from tests.support.processes import Elapsed

PROMPT = [5, 6, 7]
FEW = SamplingParams(max_new_tokens=12)


def big_verifier() -> FakeVerifier:
    return FakeVerifier(num_blocks=1024, max_model_len=4096)


async def test_a_client_is_connected_again_within_two_seconds_of_the_return(tmp_path: Path) -> None:
    async with fake_service(tmp_path) as service:
        client = AsyncClient(service.address, timeout_s=60)
        await client.complete(PROMPT, FEW)
    with pytest.raises(Unavailable):
        await client.status()
    async with client, fake_service(tmp_path):
        elapsed = Elapsed()
        while True:
            try:
                answer = await client.complete(PROMPT, FEW)
                break
            except Unavailable:
                assert elapsed.seconds < 2.0
                await asyncio.sleep(0)
        assert list(answer.token_ids) == continuation(PROMPT, 12)


async def test_a_patient_client_does_not_notice_a_restart_between_its_calls(tmp_path: Path) -> None:
    async with fake_service(tmp_path) as service:
        address = service.address
    blocking = Client(address, patience_s=30)
    async with AsyncClient(address, patience_s=30) as client:
        waiting = asyncio.create_task(client.complete(PROMPT, FEW))
        in_thread = asyncio.create_task(asyncio.to_thread(blocking.complete, PROMPT, FEW))
        await asyncio.wait({waiting, in_thread}, timeout=0.3)
        assert not waiting.done(), "nobody is there, and it waits"
        async with fake_service(tmp_path):
            for answer in await asyncio.gather(waiting, in_thread):
                assert list(answer.token_ids) == continuation(PROMPT, 12)
    blocking.close()


async def test_a_stream_that_has_begun_is_never_begun_anew(tmp_path: Path) -> None:
    async with (
        fake_service(tmp_path, verifier=big_verifier(), drain_timeout_s=0.05) as service,
        AsyncClient(service.address, patience_s=30) as client,
    ):
        stream = client.generate(PROMPT, SamplingParams(max_new_tokens=3000))
        tokens = list((await anext(stream)).token_ids)
        service.server.on_signal()
        error: MineDraftError | None = None
        try:
            async for piece in stream:
                tokens += piece.token_ids
        except MineDraftError as caught:
            error = caught
        assert isinstance(error, Draining)
        assert error.retry_after_s is not None, "the client may send it again itself"
        assert tokens == continuation(PROMPT, len(tokens))
        await service.task
