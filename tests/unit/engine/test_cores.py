"""The verifier has the drafter's cores in mode ar, and its own again with drafts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import ProtocolError, WorkerLost
from minedraft.types import LoanTerms, Mode, Role
from tests.fakes.workers import FakeDrafter, FakeVerifier
from tests.support.stepping import until

OWN, ALL = (1,), (0, 1)


def limits(mode: Mode) -> SchedulerLimits:
    return SchedulerLimits(mode, 2, max_model_len=128)


def a_verifier() -> FakeVerifier:
    verifier = FakeVerifier()
    verifier.info = replace(verifier.info, cores=OWN, max_cores=ALL)
    return verifier


class CoresOf:
    """An observer: the verifier's cores as the events tell them."""

    def __init__(self) -> None:
        self.told: list[tuple[int, ...]] = []

    def __call__(self, event: events.Event, now_s: float) -> None:
        if isinstance(event, events.CoresChanged):
            assert event.role is Role.VERIFIER
            self.told.append(event.cores)


async def test_the_cores_follow_the_mode() -> None:
    verifier, told = a_verifier(), CoresOf()
    async with Pipeline(limits(Mode.AR), verifier, FakeDrafter(), observers=[told]) as pipeline, asyncio.timeout(60):
        await until(lambda: told.told == [ALL])
        for mode, wanted in ((Mode.SD, OWN), (Mode.MINEDRAFT, OWN), (Mode.AR, ALL), (Mode.MINEDRAFT, OWN)):
            pipeline.reconfigure(limits(mode))
            await until(lambda wanted=wanted: verifier.cores[-1] == wanted)
    assert verifier.cores == told.told == [ALL, OWN, ALL, OWN], "a mode that needs no change sends no command"


async def test_a_borrower_keeps_the_verifier_to_its_own_cores() -> None:
    verifier = a_verifier()
    terms = {keep: LoanTerms.check("ar", 2, 0, keep_cores=keep) for keep in (False, True)}
    async with Pipeline(limits(Mode.MINEDRAFT), verifier, None) as pipeline, asyncio.timeout(10):
        for keep in (False, True, False):
            pipeline.reconfigure(limits(Mode.MINEDRAFT).lent(terms[keep]))
            await until(lambda keep=keep: verifier.cores[-1:] == [OWN if keep else ALL])
    assert verifier.cores == [ALL, OWN, ALL]


async def test_a_verifier_with_cores_of_its_own_only_is_left_alone() -> None:
    verifier = FakeVerifier()
    async with Pipeline(limits(Mode.AR), verifier, None) as pipeline, asyncio.timeout(60):
        for mode in (Mode.SD, Mode.AR):
            pipeline.reconfigure(limits(mode))
            await pipeline.settled()
            for _ in range(20):
                await asyncio.sleep(0)
    assert verifier.cores == []


async def test_a_verifier_that_comes_back_has_its_own_cores_and_gets_the_others_again() -> None:
    first, second = a_verifier(), a_verifier()
    async with Pipeline(limits(Mode.AR), first, None, verifier_returns=True) as pipeline, asyncio.timeout(60):
        await until(lambda: first.cores == [ALL])
        pipeline.lose_verifier(WorkerLost("killed"))
        pipeline.gain_verifier(second)
        await until(lambda: second.cores == [ALL])
    assert first.cores == [ALL]


async def test_a_change_that_fails_is_said_and_tried_again_with_the_next_mode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    verifier = a_verifier()
    verifier.error = ProtocolError("no threads")
    async with Pipeline(limits(Mode.AR), verifier, FakeDrafter()) as pipeline, asyncio.timeout(60):
        await until(lambda: "the verifier keeps its cores: no threads" in caplog.text)
        verifier.error = None
        for mode, wanted in ((Mode.SD, []), (Mode.AR, [ALL])):
            pipeline.reconfigure(limits(mode))
            await pipeline.settled()
            await until(lambda wanted=wanted: verifier.cores == wanted)
