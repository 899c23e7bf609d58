"""Fixtures of the worker link: a worker with a gate, served in this process, and a link to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from minedraft.rpc.worker_link import GrpcVerifier
from minedraft.types import Role
from tests.support.served_worker import Served, served


@pytest_asyncio.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(Role.VERIFIER, tmp_path) as worker:
        yield worker


@pytest_asyncio.fixture
async def verifier(worker: Served) -> AsyncIterator[GrpcVerifier]:
    async with await GrpcVerifier.connect(worker.address) as link:
        yield link
