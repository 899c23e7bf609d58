"""Each worker has all cores where only one of them works at a time, and its own where both do."""

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

DRAFTERS, OWN, ALL = (0,), (1,), (0, 1)


def limits(mode: Mode) -> SchedulerLimits:
    return SchedulerLimits(mode, 2, max_model_len=128)


def a_verifier() -> FakeVerifier:
    verifier = FakeVerifier()
    verifier.info = replace(verifier.info, cores=OWN, max_cores=ALL)
    return verifier


def a_drafter() -> FakeDrafter:
    drafter = FakeDrafter()
    drafter.info = replace(drafter.info, cores=DRAFTERS, max_cores=ALL)
    return drafter


class CoresOf:
    """An observer: the workers' cores as the events tell them."""

    def __init__(self) -> None:
        self.told: dict[Role, list[tuple[int, ...]]] = {role: [] for role in Role}

    def __call__(self, event: events.Event, now_s: float) -> None:
        if isinstance(event, events.CoresChanged):
            self.told[event.role].append(event.cores)


async def test_whichever_works_has_all_cores_and_its_own_where_both_do() -> None:
    verifier, drafter, cores = a_verifier(), a_drafter(), CoresOf()
    async with Pipeline(limits(Mode.AR), verifier, drafter, observers=[cores]) as pipeline, asyncio.timeout(60):
        await until(lambda: cores.told == {Role.VERIFIER: [ALL], Role.DRAFTER: [ALL]})
        for mode, num in ((Mode.SD, 1), (Mode.MINEDRAFT, 2), (Mode.SD, 3), (Mode.PEARL, 4), (Mode.AR, 5)):
            pipeline.reconfigure(limits(mode))
            await until(lambda num=num: [len(told) for told in cores.told.values()] == [num, num])
    assert verifier.cores == cores.told[Role.VERIFIER] == [ALL, OWN, ALL, OWN, ALL]
    assert drafter.cores == cores.told[Role.DRAFTER] == [ALL, DRAFTERS, ALL, DRAFTERS, ALL]


async def test_a_drafter_that_comes_back_gets_the_cores_again() -> None:
    first, second = a_drafter(), a_drafter()
    async with Pipeline(limits(Mode.SD), a_verifier(), first) as pipeline, asyncio.timeout(60):
        await until(lambda: first.cores == [ALL])
        pipeline.lose_drafter(WorkerLost("killed"))
        pipeline.gain_drafter(second)
        await until(lambda: second.cores == [ALL])
    assert first.cores == [ALL]


@pytest.mark.parametrize("mode", ["ar", "sd"])
async def test_a_borrower_keeps_the_verifier_to_its_own_cores(mode: str) -> None:
    verifier = a_verifier()
    terms = {keep: LoanTerms.check(mode, 2, 0, keep_cores=keep) for keep in (False, True)}
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
        for mode, wanted in ((Mode.MINEDRAFT, []), (Mode.AR, [ALL])):
            pipeline.reconfigure(limits(mode))
            await pipeline.settled()
            await until(lambda wanted=wanted: verifier.cores == wanted)
