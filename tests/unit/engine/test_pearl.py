"""Mode pearl, stepped with fake workers: the drafter works on the requests that are being verified, and what it
prepared is used exactly when the verdict is one of its branches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import DraftOffer, FixedDraftLen
from minedraft.core.request import NewRequest, Request
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import ProtocolError, WorkerLost
from minedraft.messages import DraftCommand
from minedraft.sampling_params import SamplingParams
from minedraft.types import DraftMethod, Mode
from scripts.lib.sink import Collector
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline
from tests.support.stepping import until

PROMPTS = [tuple(range(n, 2 * n + 1)) for n in range(1, 9)]


def limits(max_batch_size: int = 1, draft_len: int = 3, branches: int = 4, prefill_chunk: int = 64) -> SchedulerLimits:
    return SchedulerLimits(Mode.PEARL, max_batch_size, draft_len, prefill_chunk, 99, 128, branches)


async def answer_all(pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], max_new: int = 40) -> list[list[int]]:
    sinks = [Collector() for _ in prompts]
    for prompt, sink in zip(prompts, sinks, strict=True):
        pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=max_new)), sink)
    await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 20)
    return [sink.tokens for sink in sinks]


def num_plain_drafts(drafter: FakeDrafter) -> int:
    """Commands before a verify, for which the verifier waits."""
    return sum(any(s.draft_len and s.ahead is None for s in command.spans) for command in drafter.commands)


async def test_a_drafter_that_is_always_right_is_asked_once_and_then_runs_ahead() -> None:
    drafter = FakeDrafter(is_right=lambda n: True)
    async with CountedPipeline(limits(branches=1), FakeVerifier(), drafter) as pipeline:
        assert await answer_all(pipeline, [(7, 8)]) == [continuation((7, 8), 40)]
        assert num_plain_drafts(drafter) == 1
        counters = pipeline.counters
        assert counters.used_runs == counters.runs_ahead > 5
        assert counters.accepted_drafts == counters.verified_drafts


@pytest.mark.parametrize("draft_len", [1, 3])
async def test_more_branches_make_more_verdicts_come_true(draft_len: int) -> None:
    used = []
    for branches in (1, 2, 5):
        drafter = FakeDrafter(is_right=lambda n: n % 5 != 0)
        async with CountedPipeline(limits(1, draft_len, branches), FakeVerifier(), drafter) as pipeline:
            assert await answer_all(pipeline, PROMPTS) == [continuation(p, 40) for p in PROMPTS]
            used.append(pipeline.counters.used_runs / pipeline.counters.runs_ahead)
            await until(lambda d=drafter: not d.kv.tokens)
            assert drafter.kv.pool.num_free == drafter.info.num_blocks
    assert used[0] < used[1] <= used[2]


async def test_the_drafter_works_while_the_same_requests_are_verified() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    gate = asyncio.get_running_loop().create_future()
    verifier.hold = lambda: asyncio.shield(gate)
    async with Pipeline(limits(2), verifier, drafter) as pipeline:
        waiting = asyncio.create_task(answer_all(pipeline, [(1,), (2,)]))
        await until(lambda: any(span.ahead for command in drafter.commands for span in command.spans))
        assert not verifier.commands
        gate.set_result(None)
        assert await waiting == [continuation((n,), 40) for n in (1, 2)]


async def test_a_request_whose_branch_failed_does_not_hold_up_one_whose_drafts_are_ready() -> None:
    drafter = FakeDrafter(is_right=lambda n: n < 30)
    async with CountedPipeline(limits(2, branches=1), FakeVerifier(), drafter) as pipeline:
        prompts = [(1,), tuple(range(28))]  # the second one's drafts are soon always wrong
        assert await answer_all(pipeline, prompts, 20) == [continuation(p, 20) for p in prompts]
        assert pipeline.counters.used_runs < pipeline.counters.runs_ahead
        mixed = [c for c in drafter.commands if any(s.draft_len and not s.ahead for s in c.spans)]
        assert len(mixed) < len(drafter.commands) / 2


async def test_a_drafter_that_cannot_run_ahead_drafts_as_in_sd() -> None:
    drafter = FakeDrafter()
    drafter.info = replace(drafter.info, draft_method=None)
    async with CountedPipeline(limits(2), FakeVerifier(), drafter) as pipeline:
        assert await answer_all(pipeline, PROMPTS[:4]) == [continuation(p, 40) for p in PROMPTS[:4]]
        assert pipeline.counters.runs_ahead == 0
        assert pipeline.counters.accepted_drafts > 0
    assert all(span.ahead is None for command in drafter.commands for span in command.spans)
    assert all(method.can_run_ahead for method in (DraftMethod.MODEL, DraftMethod.NGRAM))


@pytest.mark.parametrize("names_a_request", [True, False])
async def test_a_run_that_the_drafter_refuses_costs_drafts_only(names_a_request: bool) -> None:
    drafter = FakeDrafter()
    refused = 0

    def refuse(command: DraftCommand) -> None:
        nonlocal refused
        runs = [span for span in command.spans if span.ahead is not None]
        if len(drafter.commands) % 4 == 2 and runs and refused < 6:
            refused += 1
            error = ProtocolError("refused for the test")
            error.request_id = runs[0].request_id if names_a_request and refused == 3 else None
            raise error

    drafter.refuse = refuse  # type: ignore[assignment]
    async with CountedPipeline(limits(3), FakeVerifier(), drafter) as pipeline:
        assert await answer_all(pipeline, PROMPTS) == [continuation(p, 40) for p in PROMPTS]
        assert refused > 1
        await until(lambda: not drafter.kv.tokens)
    assert drafter.kv.pool.num_free == drafter.info.num_blocks


async def test_a_drafter_lost_in_a_run_and_back_later_leaves_the_tokens_unchanged() -> None:
    drafter = FakeDrafter()
    async with CountedPipeline(limits(2), FakeVerifier(), drafter) as pipeline:
        waiting = asyncio.create_task(answer_all(pipeline, PROMPTS, 60))
        await until(lambda: pipeline.counters.used_runs > 3)
        drafter.error = WorkerLost("drafter: gone")
        await until(lambda: pipeline.drafter is None)
        num_runs = pipeline.counters.runs_ahead
        drafter.renew()
        pipeline.gain_drafter(drafter)
        await until(lambda: pipeline.counters.runs_ahead > num_runs + 3)
        assert await waiting == [continuation(p, 60) for p in PROMPTS]


async def test_aborts_in_the_middle_of_runs_free_everything() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    async with CountedPipeline(limits(3), verifier, drafter) as pipeline:
        for count in range(20):
            sink = Collector()
            request_id = pipeline.submit(NewRequest((count, 5), SamplingParams(max_new_tokens=90)), sink)
            await until(lambda n=count, s=sink: len(s.tokens) > n)
            assert pipeline.abort(request_id)
            await sink.done.wait()
        await until(lambda: not verifier.kv.tokens and not drafter.kv.tokens)
        assert pipeline.counters.used_runs > 0
    assert drafter.kv.pool.num_free == drafter.info.num_blocks


class _Few(FixedDraftLen):
    """Has the first of the drafts verified, and asks for a number that changes."""

    def __init__(self, select: Callable[[DraftOffer], int]) -> None:
        self._select = select
        self._num_asked = 0

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        self._num_asked += 1
        return self._num_asked % (max_draft_len + 1)

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        return [self._select(offer) for offer in offers]


@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_drafts_that_a_policy_does_not_verify_are_not_run_ahead_of(kept: int) -> None:
    drafter = FakeDrafter(is_right=lambda n: True)
    policy = _Few(lambda offer: min(kept, offer.num_drafts))
    async with CountedPipeline(limits(2, 4), FakeVerifier(), drafter, draft_policy=policy) as pipeline:
        assert await answer_all(pipeline, PROMPTS) == [continuation(p, 40) for p in PROMPTS]
        runs = [span.ahead for command in drafter.commands for span in command.spans if span.ahead is not None]
        assert {run.num_drafts for run in runs} == set(range(kept + 1))
        assert pipeline.counters.used_runs > 0


@pytest.mark.parametrize("num_blocks", [12, 16, 24])
async def test_with_little_memory_fewer_branches_are_prepared_and_nothing_is_exceeded(num_blocks: int) -> None:
    drafter = FakeDrafter(num_blocks=num_blocks)
    async with CountedPipeline(limits(3, branches=6), FakeVerifier(num_blocks=40), drafter) as pipeline:
        assert await answer_all(pipeline, PROMPTS) == [continuation(p, 40) for p in PROMPTS]
        assert pipeline.counters.failed_commands == 0
        await until(lambda: not drafter.kv.tokens)
    runs = [span.ahead for command in drafter.commands for span in command.spans if span.ahead is not None]
    assert min(run.num_branches for run in runs) < 6
    assert drafter.kv.pool.num_free == num_blocks


async def test_leaving_pearl_with_drafts_ready_leaves_the_tokens_unchanged() -> None:
    async with CountedPipeline(limits(2), FakeVerifier(), FakeDrafter()) as pipeline:
        waiting = asyncio.create_task(answer_all(pipeline, PROMPTS, 60))
        for mode in (Mode.SD, Mode.PEARL, Mode.MINEDRAFT, Mode.PEARL, Mode.AR, Mode.PEARL):
            before = pipeline.counters.output_tokens
            await until(lambda n=before: pipeline.counters.output_tokens > n + 20 or waiting.done())
            pipeline.reconfigure(replace(limits(2), mode=mode))
        assert await waiting == [continuation(p, 60) for p in PROMPTS]
