"""A worker that owes an answer tells that it lives; one that hangs is given up, whichever command it hangs in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from minedraft.core.liveness import judgement
from minedraft.errors import LossCause, WorkerLost
from minedraft.rpc import link_watch
from minedraft.rpc.worker_link import GrpcVerifier
from minedraft.types import Role
from minedraft_workers import servicer
from tests.support.served_worker import command, served
from tests.support.stepping import until


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "LEAST_LIMIT_S", 0.2)
    monkeypatch.setattr(judgement, "LIMIT_IN_STEPS", 0)
    monkeypatch.setattr(link_watch, "LOOK_S", 0.02)
    monkeypatch.setattr(servicer, "HEARTBEAT_S", 0.02)


COMMANDS: dict[str, Callable[[GrpcVerifier], Coroutine[Any, Any, Any]]] = {
    "verify": lambda link: link.verify(command(link, 2)),
    "release": lambda link: link.release([1]),
    "configure": lambda link: link.configure([0]),
}


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("spins", [False, True], ids=["waits", "spins"])
async def test_a_device_that_stands_still_is_a_hang(tmp_path: Path, kind: str, spins: bool) -> None:
    done = threading.Event()
    async with served(Role.VERIFIER, tmp_path) as worker, await GrpcVerifier.connect(worker.address) as link:
        await link.verify(command(link, 1))
        worker.actor.entered.clear()
        worker.actor.work = (lambda: [None for _ in iter(done.is_set, True)]) if spins else done.wait
        stuck = asyncio.create_task(link.verify(command(link, 2)))
        await worker.entered()
        waiting = stuck if kind == "verify" else asyncio.create_task(COMMANDS[kind](link))
        async with asyncio.timeout(60):
            with pytest.raises(WorkerLost, match="its device has not moved") as caught:
                await waiting
            await asyncio.gather(stuck, return_exceptions=True)
        assert caught.value.cause is LossCause.NO_PROGRESS
        assert link.lost.is_set()
        done.set()


@pytest.mark.usefixtures("_quick")
async def test_a_worker_without_heartbeats_is_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "HEARTBEAT_S", 3600.0)
    async with served(Role.VERIFIER, tmp_path) as worker, await GrpcVerifier.connect(worker.address) as link:
        worker.actor.gate.clear()
        with pytest.raises(WorkerLost, match="no sign of life") as caught:
            await link.verify(command(link, 1))
        assert caught.value.cause is LossCause.SILENT


@pytest.mark.usefixtures("_quick")
async def test_heartbeats_are_sent_while_an_answer_is_owed_and_cost_an_idle_link_nothing(tmp_path: Path) -> None:
    async with served(Role.VERIFIER, tmp_path) as worker, await GrpcVerifier.connect(worker.address) as link:
        await link.verify(command(link, 1))
        num_bytes = link.stats.wire_bytes
        await asyncio.sleep(5 * servicer.HEARTBEAT_S)  # nothing else tells that nothing comes
        assert link.stats.wire_bytes == num_bytes
        worker.actor.gate.clear()
        call = asyncio.create_task(link.verify(command(link, 2)))
        await worker.entered()
        num_bytes = link.stats.wire_bytes
        await until(lambda: link.stats.wire_bytes > num_bytes)
        worker.actor.gate.set()
        await call


async def test_a_device_that_hangs_when_its_scheduler_has_gone_ends_the_worker(tmp_path: Path) -> None:
    async with served(Role.VERIFIER, tmp_path) as worker:
        async with await GrpcVerifier.connect(worker.address) as link:
            worker.actor.gate.clear()
            stuck = asyncio.create_task(link.verify(command(link, 1)))
            await worker.entered()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await worker.runtime.watch(hang_s=3600.0, abandoned_s=0.1)
        await asyncio.gather(stuck, return_exceptions=True)
        async with asyncio.timeout(60):
            await worker.runtime.watch(hang_s=3600.0, abandoned_s=0.1)
        assert worker.runtime.crashed.is_set()


async def test_a_worker_that_hangs_is_not_taken_back(tmp_path: Path) -> None:
    async with served(Role.VERIFIER, tmp_path) as worker:
        async with await GrpcVerifier.connect(worker.address) as link:
            worker.actor.gate.clear()
            stuck = asyncio.create_task(link.verify(command(link, 1)))
            await worker.entered()
        with pytest.raises(WorkerLost, match=r"did not answer within 0\.2 s"):
            await GrpcVerifier.connect(worker.address, connect_timeout_s=0.2)
        worker.actor.gate.set()
        await asyncio.gather(stuck, return_exceptions=True)
        async with await GrpcVerifier.connect(worker.address) as link:
            await link.verify(command(link, 1))
