"""The service that the faults are made in, and what must be left of a test: nothing."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from minedraft import AsyncClient
from minedraft.types import Role
from tests.faults.load import Answer, Answers, ask_all
from tests.faults.stack import Stack, running
from tests.stress.models import Pair, PairKind, make_pair
from tests.support.processes import until


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), PairKind.EVEN)


_MAX_DEATHS = 3
_SERVICES: set[int] = set()  # process ids of launchers that outlive a test


class Service:
    """A service for one test after another, and the answers that it gives undisturbed. One that a test has broken is
    replaced."""

    def __init__(self, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._pair = pair
        self._tmp_path_factory = tmp_path_factory
        self._running = None
        self._stack: Stack | None = None
        self._deaths: Counter[Role] = Counter()
        self.truth: Answers = []

    def get(self, dying: Role | None = None, num_deaths: int = 1) -> Stack:
        """Return the service. `dying`: whose process will end so many times: the launcher forgives few ends in five
        minutes, and waits longer each time."""
        if dying is not None and self._deaths[dying] + num_deaths > _MAX_DEATHS:
            self.stop()
        if dying is not None:
            self._deaths[dying] += num_deaths
        if self._stack is None:
            self._running = running(self._pair, self._tmp_path_factory.mktemp("service"))
            self._stack = self._running.__enter__()
            _SERVICES.add(self._stack.process.pid)
            self.truth = asyncio.run(ask_all(self._stack.address))
            assert all(isinstance(answer, Answer) for answer in self.truth), self.truth
            assert asyncio.run(has_native_kernels(self._stack.address)), "log-probabilities are compared bit by bit"
        return self._stack

    def stop(self) -> None:
        running, self._running, self._stack = self._running, None, None
        self._deaths.clear()
        if running is not None:
            running.__exit__(None, None, None)


@pytest.fixture(scope="session")
def service(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(pair, tmp_path_factory)
    yield service
    service.stop()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Compare this process's children and connections before and after each test."""
    before = _held()
    yield

    def has_more() -> bool:
        if _held() <= before:
            return False
        gc.collect()  # errors refer to their calls, and those keep their connections open
        return not _held() <= before

    until(lambda: not has_more(), 30, f"nothing new of {_held() - before}")


async def has_native_kernels(address: str) -> bool:
    """Return whether the verifier's numbers do not depend on what else it computes."""
    async with AsyncClient(address) as client:
        status = await client.status()
    return all(worker.is_batch_invariant for worker in status.workers)


def _held() -> frozenset[str]:
    me = psutil.Process()
    children = [child for child in me.children() if child.pid not in _SERVICES]
    held = [f"child {child.pid}" for child in children if child.status() != psutil.STATUS_ZOMBIE]
    held += [f"connection {c.laddr} {c.raddr}" for c in me.net_connections("all") if c.status == "ESTABLISHED"]
    return frozenset(held)
