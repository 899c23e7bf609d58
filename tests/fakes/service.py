"""A scheduler inside the test process: the real server on a real socket, with fake workers behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minedraft.engine.workers import Drafter, Verifier
from minedraft.errors import WorkerLost
from minedraft.messages import WorkerInfo
from minedraft.rpc.health import INFERENCE_SERVICE, wait_serving
from minedraft.security.tls import Access
from minedraft.server.composition import Server
from minedraft.settings.loading import load_settings
from minedraft.settings.service import Settings
from minedraft.text.tokenizer import Tokenizer
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier
from tests.support.tiny_models import write_tiny_tokenizer

_OPEN = Access()


@dataclass
class FakeService:
    """The server, its task, and the workers behind it; with mode ar the drafter is not connected."""

    server: Server
    task: asyncio.Task[None]
    settings: Settings
    verifier: FakeVerifier
    drafter: FakeDrafter
    tokenizer: Tokenizer

    @property
    def address(self) -> str:
        return self.settings.listen

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once the condition holds; it is checked after every iteration of the event loop."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - the condition belongs to fakes, which set no events
                await asyncio.sleep(0)

    async def blocks_free(self) -> None:
        """Return once all blocks of the connected workers are free."""
        pipeline = self.server.pipeline
        has_drafter = pipeline is not None and pipeline.drafter is not None
        for worker in (self.verifier, self.drafter) if has_drafter else (self.verifier,):
            pool = worker.kv.pool
            await self.until(lambda pool=pool: pool.num_free == pool.num_blocks)


class FakeConnector:
    """Links to the fakes. A lost worker can be reconnected, with a new epoch, once its `is_back` is set."""

    def __init__(self, verifier: FakeVerifier, drafter: FakeDrafter | None) -> None:
        self._verifier, self._drafter = verifier, drafter

    async def connect_verifier(self) -> Verifier:
        return self._verifier

    async def connect_drafter(self, verifier: WorkerInfo) -> Drafter | None:
        if self._drafter is not None and self._drafter.lost.is_set():
            await asyncio.Event().wait()  # it does not come
        return self._drafter

    async def reconnect_verifier(self) -> Verifier:
        if not self._verifier.is_back:
            raise WorkerLost("verifier: still away")
        self._verifier.renew()
        return self._verifier

    async def reconnect_drafter(self, verifier: WorkerInfo) -> Drafter:
        assert self._drafter is not None, "there was a drafter before"
        if not self._drafter.is_back:
            raise WorkerLost("drafter: still away")
        self._drafter.renew()
        return self._drafter


@asynccontextmanager
async def fake_service(
    folder: Path,
    *,
    verifier: FakeVerifier | None = None,
    drafter: FakeDrafter | None = None,
    draft_fingerprint: str = "",
    access: Access = _OPEN,
    **settings: Any,
) -> AsyncIterator[FakeService]:
    """Serve with fake workers until the block ends and the server has drained.

    Args:
        access: what the service wants to be shown.
    """
    write_tiny_tokenizer(folder / "model", vocab_size=VOCAB_SIZE, eos=None)
    tokenizer = Tokenizer.load(folder / "model")
    verifier, drafter = verifier or FakeVerifier(), drafter or FakeDrafter()
    for worker in (verifier, drafter):
        worker.info = replace(worker.info, vocab_fingerprint=tokenizer.fingerprint)

    if draft_fingerprint:
        drafter.info = replace(drafter.info, vocab_fingerprint=draft_fingerprint)

    given = {"target": folder / "model", "draft_method": "ngram", "mode": "minedraft", "draft_len": 3}
    given |= {"listen": f"unix:{folder / 's.sock'}", "drain_timeout_s": 5.0}
    checked = load_settings(given | settings)
    server = Server(checked, FakeConnector(verifier, drafter if checked.needs_drafter else None))
    task = asyncio.create_task(server.run())
    service = FakeService(server, task, checked, verifier, drafter, tokenizer)
    try:
        ready = asyncio.create_task(wait_serving(checked.listen_address, INFERENCE_SERVICE, access))
        async with asyncio.timeout(60):
            await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        yield service
    finally:
        server.on_signal()
        await asyncio.gather(task, return_exceptions=True)
