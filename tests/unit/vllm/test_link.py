"""The blocking face of a drafter's link, with a worker on the product's runtime."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent import futures
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from minedraft.address import Address
from minedraft.core import events
from minedraft.core.policy.base import FixedDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.errors import ConfigError, ModelError
from minedraft.types import Batch, Mode, Role
from minedraft.vllm.desk import DraftDesk, Drafts, Newcomer, StepReport
from minedraft.vllm.link import DrafterLink
from tests.support.served_worker import served

A = Batch.A


def _link(folder: Path, *, fingerprint: str = "null", wait_s: float = 5.0, policy: Any = None) -> DrafterLink:
    desk = DraftDesk(3, policy or FixedDraftLen(), Experience(), Mode.MINEDRAFT)
    return DrafterLink(Address(path=folder / "drafter.sock"), desk, 1000, fingerprint, wait_s)


@asynccontextmanager
async def _open(link: DrafterLink) -> AsyncIterator[DrafterLink]:
    await asyncio.to_thread(link.open)
    try:
        yield link
    finally:
        await asyncio.to_thread(link.close)


def _report(name: str = "x", **changes: Any) -> StepReport:
    return StepReport(A, **({"newcomers": (Newcomer(name, (1, 2), 2, 64),), "wanted": (name,)} | changes))


async def _until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - the link's thread has no event for tests
        await asyncio.sleep(0.01)


async def test_drafts_come_into_a_thread_without_a_loop(tmp_path: Path):
    async with served(Role.DRAFTER, tmp_path), _open(_link(tmp_path)) as link:
        reply = await asyncio.to_thread(lambda: link.send(_report()).result(10))
    assert reply == {"x": Drafts(2, (1, 2, 3))}


async def test_a_drafter_that_is_late_is_not_asked_again_until_it_answers(tmp_path: Path):
    async with served(Role.DRAFTER, tmp_path) as worker, _open(_link(tmp_path)) as link:
        worker.actor.gate.clear()
        late = link.send(_report())
        with pytest.raises(futures.TimeoutError):
            await asyncio.to_thread(late.result, 0.05)
        assert await asyncio.to_thread(link.send(StepReport(A, wanted=("x",))).result, 10) == {}
        worker.actor.gate.set()
        assert await asyncio.to_thread(late.result, 10) == {"x": Drafts(2, (1, 2, 3))}
        again = await asyncio.to_thread(link.send(StepReport(A, wanted=("x",))).result, 10)
        assert again == {"x": Drafts(2, (1, 2, 3))}


@pytest.mark.slow
async def test_a_lost_drafter_is_taken_back_and_learns_all_tokens_again(tmp_path: Path):
    async with _open(_link(tmp_path, wait_s=0.05)) as link:
        assert link.info is None
        assert await asyncio.to_thread(link.send(_report()).result, 10) == {}
        async with served(Role.DRAFTER, tmp_path):
            await _until(lambda: link.info is not None)
            reply = await asyncio.to_thread(link.send(StepReport(A, wanted=("x",))).result, 10)
            assert reply == {"x": Drafts(2, (1, 2, 3))}
        await _until(lambda: link.info is None)
        assert await asyncio.to_thread(link.send(StepReport(A, wanted=("x",))).result, 10) == {}


async def test_a_drafter_of_another_vocabulary_is_refused_with_both_numbers(tmp_path: Path):
    link = _link(tmp_path, fingerprint="another")
    async with served(Role.DRAFTER, tmp_path):
        with pytest.raises(ModelError, match=r"vocabulary of 50000 ids .*null.* is not the target's of 1000 .*another"):
            await asyncio.to_thread(link.open)
        await asyncio.to_thread(link.close)


async def test_a_verifier_at_the_address_is_refused(tmp_path: Path):
    async with served(Role.VERIFIER, tmp_path) as worker:
        desk = DraftDesk(3, FixedDraftLen(), Experience(), Mode.MINEDRAFT)
        link = DrafterLink(worker.address, desk, 1000, "null", 5.0)
        with pytest.raises(ConfigError, match="not a drafter"):
            await asyncio.to_thread(link.open)
        await asyncio.to_thread(link.close)


def test_a_link_whose_thread_is_just_ending_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    link = _link(tmp_path)
    link._loop.close()
    ending = threading.Event()
    monkeypatch.setattr(link, "_thread", threading.Thread(target=ending.wait))
    link._thread.start()
    monkeypatch.setattr(link._thread, "join", lambda timeout_s: ending.set())
    link.close()
    assert ending.is_set(), "it waited for the thread"


async def test_a_policy_that_fails_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    class Failing(FixedDraftLen):
        def observe(self, event: Any, now_s: float) -> None:
            if isinstance(event, events.RoundPlanned):
                raise ZeroDivisionError

    async with served(Role.DRAFTER, tmp_path), _open(_link(tmp_path, policy=Failing())) as link:
        assert await asyncio.to_thread(link.send(_report()).result, 10) == {}
        assert await asyncio.to_thread(link.send(StepReport(A, ended=("x",))).result, 10) == {}
    assert "drafting failed" in caplog.text


async def test_after_the_end_reports_are_answered_without_drafts(tmp_path: Path):
    async with served(Role.DRAFTER, tmp_path):
        async with _open(_link(tmp_path)) as link:
            pass
        assert link.send(_report()).result(0) == {}
        link.close()
