"""Status as an observer: counts only grow, whatever happens to links, workers and modes."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from minedraft.carriers import Carrier
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import Overloaded, WorkerLost
from minedraft.messages import LinkStats
from minedraft.observe.status import StatusBoard
from minedraft.observe.timeline import Timeline
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams
from minedraft.settings.service import Settings
from minedraft.types import Mode, Role
from scripts.lib.sink import Collector
from tests.fakes import features
from tests.fakes.workers import FakeDrafter, FakeVerifier
from tests.unit.engine.test_pipeline import answer_all

LIMITS = SchedulerLimits(max_batch_size=2, max_model_len=128)
PROMPTS = [(n, 3) for n in range(1, 7)]


def totals(status: ServiceStatus) -> tuple[int, ...]:
    return (
        status.output_tokens, status.finished_requests, status.preemptions, status.stale_replies, status.wire_bytes,
        status.steps, status.verified_drafts, status.accepted_drafts, status.feature_bytes,
    )  # fmt: skip


async def test_counts_go_on_over_modes_and_lost_links() -> None:
    board = StatusBoard(Settings())
    verifier, drafter = FakeVerifier(), FakeDrafter()
    verifier.stats, drafter.stats = LinkStats(wire_bytes=1000, num_stale=1), LinkStats(wire_bytes=500, num_stale=2)
    async with (
        Pipeline(LIMITS, verifier, drafter, observers=[board.observe], verifier_returns=True) as pipeline,
        asyncio.timeout(60),
    ):
        seen = [board.status("serving", pipeline)]
        assert (seen[0].wire_bytes, seen[0].stale_replies) == (1500, 3)
        await answer_all(pipeline, PROMPTS)
        seen.append(board.status("serving", pipeline))
        assert seen[-1].finished_requests == 6
        assert seen[-1].vsr > 0
        pipeline.reconfigure(SchedulerLimits(Mode.AR, 2, max_model_len=128))
        seen.append(board.status("serving", pipeline))
        assert seen[-1].vsr == 0, "of the present mode"
        assert seen[-1].draft_len == 0
        await answer_all(pipeline, PROMPTS[:1])
        pipeline.lose_drafter(WorkerLost("drafter: killed"))
        pipeline.lose_verifier(WorkerLost("verifier: killed"))
        seen.append(board.status("degraded", pipeline))
        assert [worker.state for worker in seen[-1].workers] == ["lost", "lost"]
        pipeline.gain_verifier(FakeVerifier())
        pipeline.gain_drafter(FakeDrafter())
        seen.append(board.status("serving", pipeline))
        assert [worker.state for worker in seen[-1].workers] == ["ready", "ready"]
        assert [worker.carrier for worker in seen[-1].workers] == ["inline", "inline"]
        assert pipeline.drafter is not None
        pipeline.drafter.stats.carrier = Carrier.SHM
        assert [worker.carrier for worker in board.status("serving", pipeline).workers] == ["shm", "shm"]
        assert (seen[-1].wire_bytes, seen[-1].stale_replies) == (1500, 3)
        for before, after in pairwise(seen):
            assert all(b <= a for b, a in zip(totals(before), totals(after), strict=True))


async def test_before_there_is_a_pipeline_it_shows_the_settings_and_the_errors() -> None:
    board = StatusBoard(Settings(mode=Mode.AR))
    board.count_error(Overloaded("full"))
    status = board.status("starting", None)
    assert (status.state, status.mode, status.draft_len) == ("starting", "ar", 0)
    assert status.errors == {"OVERLOADED": 1}


async def test_the_timeline_has_a_bar_for_each_command() -> None:
    timeline = Timeline()
    verifier, drafter = FakeVerifier(), FakeDrafter()
    async with Pipeline(LIMITS, verifier, drafter, observers=[timeline.observe]) as pipeline:
        sink = Collector()
        pipeline.submit(NewRequest((5, 6, 7), SamplingParams(max_new_tokens=12)), sink)
        await sink.done.wait()
    verifies = [bar for bar in timeline.bars if bar.role is Role.VERIFIER]
    assert len(verifies) == len(verifier.commands)
    assert len(timeline.bars) - len(verifies) == len(drafter.commands)
    assert [bar.number for bar in verifies] == sorted(bar.number for bar in verifies)


async def test_features_are_counted_once_each() -> None:
    board = StatusBoard(Settings())
    drafter = FakeDrafter(reads_features=True)
    async with Pipeline(LIMITS, FakeVerifier(), drafter, observers=[board.observe]) as pipeline, asyncio.timeout(60):
        await answer_all(pipeline, PROMPTS)
        status = board.status("serving", pipeline)
    num_tokens = sum(len(prompt) for prompt in PROMPTS) + status.output_tokens
    # Of every token but the last ones of each answer, which nothing is drafted after.
    assert num_tokens - 6 * (LIMITS.draft_len + 2) <= status.feature_bytes / (4 * features.SIZE) < num_tokens
