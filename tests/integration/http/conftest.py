"""The HTTP door over a real socket, a real scheduler behind it, and workers without a model behind that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from minedraft import AsyncClient
from minedraft.address import Address
from minedraft.http.door import Door
from minedraft.http.model_facts import ModelFacts
from minedraft.http.serving import listen_at, make_server
from minedraft.settings.door import host_check
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier


@dataclass
class Served:
    """A door and the service behind it. url: with no slash at its end."""

    service: FakeService
    client: AsyncClient
    url: str

    def openai(self, token: str = "none") -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0)


@asynccontextmanager
async def http_door(
    service: FakeService,
    admits: Callable[[str], bool] | None = None,
    origins: tuple[str, ...] = (),
    hosts: str | None = None,
) -> AsyncIterator[Served]:
    """Serve HTTP for a service while the block runs. hosts: as the setting `http_hosts`."""
    address = Address(host="127.0.0.1", port=0)
    async with AsyncClient(service.address) as client:
        door = Door(client, service.tokenizer, ModelFacts(client, "tiny"))
        http = make_server(door.app(admits, origins, host_check(address, hosts)))
        with listen_at(address) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            task = asyncio.create_task(http.serve([listening]))
            try:
                yield Served(service, client, url)
            finally:
                http.stop()
                http.stop()
                await task


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    verifier = FakeVerifier(num_blocks=1024, max_model_len=2048)
    drafter = FakeDrafter(num_blocks=1024, max_model_len=2048)
    async with (
        fake_service(tmp_path, verifier=verifier, drafter=drafter, max_waiting=4, max_batch_size=2) as service,
        http_door(service) as served,
    ):
        yield served
        await service.blocks_free()
