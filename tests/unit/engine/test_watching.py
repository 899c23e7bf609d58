"""The watchdog in the pipeline: useless drafts are dropped with the answers as they were, and taken up again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import FixedDraftLen, FixedMode
from minedraft.core.request import NewRequest
from minedraft.sampling_params import SamplingParams
from minedraft.server.watching import watched
from minedraft.settings.service import Settings
from minedraft.types import Mode
from scripts.lib.sink import Collector
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline
from tests.support.stepping import until

NUM_NEW = 100
NUM_REQUESTS = 8


class Watched:
    """A pipeline with a watchdog, the drafter that it watches, and what it says."""

    def __init__(self, mode: Mode, max_batch_size: int, **settings: Any) -> None:
        self.now_s = 0.0
        self.drafter = FakeDrafter(num_blocks=512, is_right=lambda n: False)
        self.told: list[events.Event] = []
        limits = SchedulerLimits(mode, max_batch_size, 3, max_model_len=128)
        policies = watched(Settings(**settings), FixedDraftLen(), FixedMode())
        self.pipeline = CountedPipeline(
            limits,
            FakeVerifier(num_blocks=512),
            self.drafter,
            observers=[self.observe],
            clock=lambda: self.now_s,
            **policies,
        )

    def observe(self, event: events.Event, now_s: float) -> None:
        if isinstance(event, events.DraftingSuspended | events.DraftingResumed | events.ModeChanged):
            self.told.append(event)

    @property
    def last(self) -> events.Event:
        return self.told[-1]

    def submit(self) -> list[tuple[int, Collector]]:
        sinks = [(n, Collector()) for n in range(1, NUM_REQUESTS + 1)]
        for n, sink in sinks:
            self.pipeline.submit(NewRequest((n, 3), SamplingParams(max_new_tokens=NUM_NEW)), sink)
        return sinks

    async def answer(self) -> None:
        sinks = self.submit()
        await asyncio.gather(*(sink.done.wait() for _, sink in sinks))
        assert [sink.tokens for _, sink in sinks] == [continuation((n, 3), NUM_NEW) for n, _ in sinks]


@pytest.mark.parametrize(("mode", "size"), [(Mode.MINEDRAFT, 4), (Mode.SD, 8)])
async def test_useless_drafting_becomes_ar_and_is_tried_again_later(
    mode: Mode, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    service = Watched(mode, size)
    pipeline, drafter = service.pipeline, service.drafter
    async with pipeline, asyncio.timeout(60):
        await service.answer()
        suspended, ar = service.told[1:]
        assert isinstance(suspended, events.DraftingSuspended)
        assert suspended.request_id is None
        assert ar == events.ModeChanged(Mode.AR, 8, 0, "drafting is suspended"), (
            "all that were in two batches are in one"
        )
        num_commands = len(drafter.commands)
        assert num_commands < 80, "of some 200 rounds"
        await service.answer()
        assert len(drafter.commands) == num_commands, "the drafter hears nothing more, not even prompts"
        said = [record.getMessage() for record in caplog.records if "suspended" in record.getMessage()]
        assert len(said) == 1
        assert said[0].startswith("drafting is suspended for the service: drafts are not accepted: the draft model")
        # Requests that began without drafts are caught up when drafts are tried again.
        service.now_s += 15.0
        drafter.is_right = lambda n: True
        sinks = service.submit()
        await until(lambda: service.last == events.DraftingResumed(None, is_trial=False))
        assert service.told[3:] == [
            events.DraftingResumed(None, is_trial=True),
            events.ModeChanged(mode, size, 3, "drafting is resumed"),
            events.DraftingResumed(None, is_trial=False),
        ]
        await asyncio.gather(*(sink.done.wait() for _, sink in sinks))
        assert [sink.tokens for _, sink in sinks] == [continuation((n, 3), NUM_NEW) for n, _ in sinks]
        assert pipeline.counters.accepted_drafts > 0


async def test_one_request_whose_drafts_are_useless_decodes_without_and_is_caught_up_later() -> None:
    """It is in a round with others all the time."""
    service = Watched(Mode.SD, 8)
    odd = 5
    is_odd = True
    verifier = service.pipeline.verifier
    assert isinstance(verifier, FakeVerifier)

    def is_right(length: int) -> bool:
        return not is_odd or current[-1] != odd

    current: list[int] = [0]
    run, service.drafter.is_right = service.drafter._propose, is_right  # type: ignore[assignment]

    def propose(tokens: Any) -> int:
        current[-1] = tokens[0]
        return run(tokens)

    service.drafter._propose = propose  # type: ignore[method-assign]
    async with service.pipeline as pipeline, asyncio.timeout(60):
        for _ in range(4):  # what is usual becomes known
            await service.answer()
        rested = [e for e in service.told if isinstance(e, events.DraftingSuspended)]
        assert rested
        assert all(e.request_id is not None for e in rested)
        assert pipeline.scheduler.limits.mode is Mode.SD
        is_odd = False
        await service.answer()


async def test_a_service_that_keeps_drafting_drafts_whatever_comes_of_it() -> None:
    service = Watched(Mode.SD, 8, keep_drafting=True)
    async with service.pipeline, asyncio.timeout(60):
        await service.answer()
    assert len(service.told) == 1
    assert service.pipeline.counters.verified_drafts > NUM_REQUESTS * (NUM_NEW - 5) * 2
