"""The overlapped loop, stepped with fake workers in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from minedraft.core.blocks import BlocksExhausted
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import (
    Draining,
    InternalError,
    InvalidRequest,
    MineDraftError,
    ProtocolError,
    Unavailable,
    WorkerLost,
)
from minedraft.messages import DraftCommand, VerifyCommand, VerifyReply
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch, FinishReason, Mode
from scripts.lib.sink import Collector
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline
from tests.support.stepping import until

PROMPTS = [tuple(range(n, 2 * n + 1)) for n in range(1, 14)]


async def answer_all(pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], max_new: int = 20) -> list[Collector]:
    sinks = [Collector() for _ in prompts]
    for prompt, sink in zip(prompts, sinks, strict=True):
        pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=max_new)), sink)
    await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 20)
    return sinks


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("max_batch_size", [1, 3, 8])
async def test_every_mode_and_size_commits_the_targets_own_tokens(mode: Mode, max_batch_size: int) -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    limits = SchedulerLimits(mode, max_batch_size, max_model_len=128)
    async with CountedPipeline(limits, verifier, drafter) as pipeline:
        sinks = await answer_all(pipeline, PROMPTS)
        for prompt, sink in zip(PROMPTS, sinks, strict=True):
            assert sink.tokens == continuation(prompt, 20)
            assert sink.reason is FinishReason.LENGTH
            assert sink.usage is not None
            assert sink.usage.output_tokens == 20
        assert (pipeline.counters.accepted_drafts > 0) is mode.has_drafts
        await asyncio.wait_for(pipeline.drain(), 5)
        await until(lambda: not verifier.kv.tokens and not drafter.kv.tokens)  # the last releases follow the last round
    assert verifier.kv.pool.num_free == verifier.info.num_blocks


async def test_the_other_batch_is_drafted_while_one_is_being_verified() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    gate = asyncio.get_running_loop().create_future()
    verifier.hold = lambda: asyncio.shield(gate)
    prompts = [(1,), (2,)]  # short enough to be drafted in their first round
    async with Pipeline(SchedulerLimits(max_batch_size=1, max_model_len=128), verifier, drafter) as pipeline:
        waiting = asyncio.create_task(answer_all(pipeline, prompts))
        await until(lambda: {c.round.batch for c in drafter.commands} == set(Batch))
        assert not verifier.commands, "both were drafted while the first verify was still running"
        gate.set_result(None)
        assert [s.tokens for s in await waiting] == [continuation(p, 20) for p in prompts]


async def test_with_one_batch_nothing_is_drafted_during_the_verify() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    gate = asyncio.get_running_loop().create_future()
    holding = asyncio.Event()

    def hold() -> asyncio.Future[None]:
        holding.set()
        return asyncio.shield(gate)

    verifier.hold = hold
    async with Pipeline(SchedulerLimits(Mode.SD, 2, max_model_len=128), verifier, drafter) as pipeline:
        waiting = asyncio.create_task(answer_all(pipeline, [(1,), (2,)]))
        await holding.wait()
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(drafter.commands) == 1
        gate.set_result(None)
        await waiting


async def test_abort_frees_the_blocks_and_disturbs_nobody() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    async with Pipeline(SchedulerLimits(max_batch_size=4, max_model_len=128), verifier, drafter) as pipeline:
        victim = Collector(stop_after=None)
        request_id = pipeline.submit(NewRequest((1, 2, 3), SamplingParams(max_new_tokens=100)), victim)
        others = asyncio.create_task(answer_all(pipeline, PROMPTS[:3]))
        await until(lambda: bool(victim.tokens))
        assert pipeline.abort(request_id)
        assert [s.tokens for s in await others] == [continuation(p, 20) for p in PROMPTS[:3]]
        assert victim.reason is FinishReason.ABORT
        assert not pipeline.abort(request_id)
        await until(lambda: not verifier.kv.tokens)
        assert verifier.kv.pool.num_free == verifier.info.num_blocks


async def test_a_sink_that_found_a_stop_string_ends_its_request_at_once() -> None:
    async with Pipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), FakeDrafter()) as pipeline:
        sink = Collector(stop_after=5)
        pipeline.submit(NewRequest((9, 8), SamplingParams(max_new_tokens=50)), sink)
        await asyncio.wait_for(sink.done.wait(), 5)
        assert sink.reason is FinishReason.STOP
        assert 5 <= len(sink.tokens) <= 5 + pipeline.scheduler.limits.draft_len


async def test_without_its_drafter_the_service_goes_on_with_the_same_tokens() -> None:
    drafter = FakeDrafter()
    async with Pipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), drafter) as pipeline:
        first = Collector()
        pipeline.submit(NewRequest((5, 6), SamplingParams(max_new_tokens=60)), first)
        await until(lambda: len(first.tokens) >= 10)
        drafter.error = WorkerLost("drafter: connection closed")
        sinks = await answer_all(pipeline, PROMPTS[:2])
        await asyncio.wait_for(first.done.wait(), 5)
        assert pipeline.drafter is None
        assert first.tokens == continuation((5, 6), 60)
        assert [s.tokens for s in sinks] == [continuation(p, 20) for p in PROMPTS[:2]]


class DyingVerifier(FakeVerifier):
    async def verify(self, command: VerifyCommand) -> VerifyReply:
        if len(self.commands) > 3:
            raise WorkerLost("verifier: connection closed")
        return await super().verify(command)


async def test_a_lost_verifier_ends_every_request_with_the_cause() -> None:
    async with Pipeline(SchedulerLimits(max_batch_size=2, max_model_len=128), DyingVerifier(), None) as pipeline:
        sinks = await answer_all(pipeline, PROMPTS[:9], max_new=50)
        assert pipeline.failed.is_set()
        for sink in sinks:
            assert isinstance(sink.error, WorkerLost)
            assert sink.reason is None
        with pytest.raises(Unavailable, match="connection closed"):
            pipeline.submit(NewRequest((1,), SamplingParams()), Collector())


def refuse_once(error: MineDraftError, culprit: int | None = None) -> Callable[[DraftCommand | VerifyCommand], None]:
    """A worker's `refuse` that raises `error` for the first command (of `culprit`, if one is given)."""
    left = [error]

    def refuse(command: DraftCommand | VerifyCommand) -> None:
        if left and (culprit is None or any(span.request_id == culprit for span in command.spans)):
            left[0].request_id = culprit
            raise left.pop()

    return refuse


async def test_a_draft_that_is_refused_costs_its_round_and_drafting_goes_on() -> None:
    drafter = FakeDrafter()
    async with CountedPipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), drafter) as pipeline:
        drafter.refuse = refuse_once(InvalidRequest("tokens", "odd", "for the test"))
        sinks = await answer_all(pipeline, PROMPTS[:4])
        assert [s.tokens for s in sinks] == [continuation(p, 20) for p in PROMPTS[:4]]
        assert pipeline.drafter is drafter
        assert all(sink.usage is not None and sink.usage.accepted_tokens > 0 for sink in sinks)
        assert pipeline.counters.failed_commands == 1
        await until(lambda: not drafter.kv.tokens)
    assert drafter.kv.pool.num_free == drafter.info.num_blocks


async def test_the_request_that_a_drafter_refuses_by_name_decodes_alone_without_drafts() -> None:
    drafter = FakeDrafter()
    async with Pipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), drafter) as pipeline:
        drafter.refuse = refuse_once(InvalidRequest("tokens", "odd", "for the test"), culprit=2)
        sinks = await answer_all(pipeline, PROMPTS[:4])
        assert [s.tokens for s in sinks] == [continuation(p, 20) for p in PROMPTS[:4]]
        drafted = [sink.usage.drafted_tokens for sink in sinks if sink.usage is not None]
        assert drafted[1] == 0
        assert all(num > 0 for index, num in enumerate(drafted) if index != 1)


async def test_a_drafter_that_refuses_whatever_comes_is_given_up_and_its_link_with_it() -> None:
    drafter = FakeDrafter()
    async with Pipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), drafter) as pipeline:
        drafter.error = ProtocolError("drafter's reply: nonsense")
        sinks = await answer_all(pipeline, PROMPTS[:4])
        assert [s.tokens for s in sinks] == [continuation(p, 20) for p in PROMPTS[:4]]
        assert pipeline.drafter is None
        assert "3 commands failed in a row" in str(drafter.lost_error)


async def test_a_drafter_that_comes_back_drafts_for_the_requests_that_run() -> None:
    drafter = FakeDrafter()
    async with Pipeline(SchedulerLimits(max_model_len=256), FakeVerifier(128, 4, 256), drafter) as pipeline:
        sink = Collector()
        pipeline.submit(NewRequest((5, 6), SamplingParams(max_new_tokens=200)), sink)
        await until(lambda: len(sink.tokens) >= 10)
        pipeline.lose_drafter(WorkerLost("drafter: stopped"))
        drafter.give_up("stopped")
        await until(lambda: len(sink.tokens) >= 20)
        back = FakeDrafter()
        pipeline.gain_drafter(back)
        await asyncio.wait_for(sink.done.wait(), 5)
        assert sink.tokens == continuation((5, 6), 200)
        assert any(span.draft_len for command in back.commands for span in command.spans)
        await until(lambda: not back.kv.tokens)


async def test_the_request_that_a_verifier_refuses_by_name_ends_and_nobody_else() -> None:
    verifier = FakeVerifier()
    async with Pipeline(SchedulerLimits(max_model_len=128), verifier, FakeDrafter()) as pipeline:
        verifier.refuse = refuse_once(InvalidRequest("drafts", "odd", "for the test"), culprit=3)
        sinks = await answer_all(pipeline, PROMPTS[:6])
        assert isinstance(sinks[2].error, InternalError)
        assert "the verifier refused this request" in str(sinks[2].error)
        others = [index for index in range(6) if index != 2]
        assert [sinks[i].tokens for i in others] == [continuation(PROMPTS[i], 20) for i in others]
        assert not pipeline.failed.is_set()
        await until(lambda: not verifier.kv.tokens)


async def test_a_round_that_a_verifier_refuses_ends_its_requests_and_not_the_other_batch() -> None:
    verifier = FakeVerifier()
    async with Pipeline(SchedulerLimits(max_batch_size=2, max_model_len=128), verifier, FakeDrafter()) as pipeline:
        verifier.refuse = refuse_once(BlocksExhausted(1, 5, 2))
        sinks = await answer_all(pipeline, PROMPTS[:4])
        assert sorted(sink.error is not None for sink in sinks) == [False, False, True, True]
        again = await answer_all(pipeline, PROMPTS[:4])
        assert [s.tokens for s in again] == [continuation(p, 20) for p in PROMPTS[:4]]


async def test_a_verifier_that_refuses_whatever_comes_ends_the_service() -> None:
    verifier = FakeVerifier()
    async with Pipeline(SchedulerLimits(max_batch_size=1, max_model_len=128), verifier, None) as pipeline:
        verifier.error = ProtocolError("verifier's reply: nonsense")
        sinks = await answer_all(pipeline, PROMPTS[:9])
        assert all(sink.error is not None for sink in sinks)
        assert "nonsense" in str(pipeline.failure)


async def test_a_request_that_waits_for_memory_is_woken_when_the_other_lane_frees_it() -> None:
    """One lane sends the release, the other looks for room meanwhile, finds none and sleeps."""
    for first, second in [(4, 9), (5, 8), (9, 4), (12, 7), (7, 16)]:
        async with Pipeline(SchedulerLimits(max_batch_size=2, max_model_len=128), FakeVerifier(8, 4), None) as pipeline:
            prompts = [(1,) * first, (1,) * second]
            sinks = await answer_all(pipeline, prompts, max_new=12)
            assert [s.tokens for s in sinks] == [continuation(p, 12) for p in prompts]


async def test_prompts_of_unlike_length_leave_the_drafter_a_token_to_draft_from() -> None:
    """Of two prompts that share a chunk only the second one wants drafts: the drafter has room for all
    of it, the verifier not."""
    drafter = FakeDrafter()
    limits = SchedulerLimits(Mode.SD, 2, 3, prefill_chunk=16, max_model_len=128)
    async with CountedPipeline(limits, FakeVerifier(), drafter) as pipeline:
        sinks = [Collector(), Collector()]
        for sink, max_new in zip(sinks, (1, 16), strict=True):
            pipeline.submit(NewRequest((5,) * 12, SamplingParams(max_new_tokens=max_new)), sink)
        await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 5)
        assert sinks[1].tokens == continuation((5,) * 12, 16)
        assert pipeline.counters.failed_commands == 0
        assert any(span.draft_len for command in drafter.commands for span in command.spans)


@pytest.mark.parametrize("drafter_vocab", [VOCAB_SIZE - 30, VOCAB_SIZE, VOCAB_SIZE + 30])
async def test_a_drafter_with_other_rows_than_the_target_drafts_what_both_know(drafter_vocab: int) -> None:
    drafter = FakeDrafter(vocab_size=drafter_vocab)
    bias = {VOCAB_SIZE - 1: 1.0, 3: 1.0}
    params = SamplingParams(max_new_tokens=20, logit_bias=bias, stop_token_ids=(VOCAB_SIZE - 1,))
    prompts = [(5, 6), (5, VOCAB_SIZE - 1), (7, 8, 9)]
    async with CountedPipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), drafter) as pipeline:
        sinks = [Collector() for _ in prompts]
        for prompt, sink in zip(prompts, sinks, strict=True):
            pipeline.submit(NewRequest(prompt, params), sink)
        await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 5)
        assert [sink.tokens for sink in sinks] == [continuation(prompt, 20) for prompt in prompts]
        assert pipeline.drafter is drafter
        assert pipeline.counters.failed_commands == 0
        drafted = [sink.usage.drafted_tokens > 0 for sink in sinks if sink.usage is not None]
        knows_all = drafter_vocab >= VOCAB_SIZE
        assert drafted[1] is knows_all
        if knows_all:
            assert all(drafted)


async def test_draining_refuses_newcomers_and_waits_for_the_rest() -> None:
    async with Pipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), FakeDrafter()) as pipeline:
        sink = Collector()
        pipeline.submit(NewRequest((1, 2), SamplingParams(max_new_tokens=30)), sink)
        draining = asyncio.create_task(pipeline.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            pipeline.submit(NewRequest((1,), SamplingParams()), Collector())
        await asyncio.wait_for(draining, 5)
        assert sink.tokens == continuation((1, 2), 30)


async def test_modes_change_between_requests_on_the_same_workers() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter()
    async with Pipeline(SchedulerLimits(max_model_len=128), verifier, drafter) as pipeline:
        for mode in (Mode.MINEDRAFT, Mode.AR, Mode.SD, Mode.MINEDRAFT):
            pipeline.reconfigure(SchedulerLimits(mode, 2, 4, max_model_len=128))
            sinks = await answer_all(pipeline, PROMPTS[:5])
            assert [s.tokens for s in sinks] == [continuation(p, 20) for p in PROMPTS[:5]]


@pytest.mark.parametrize("token_id", [-1, 97])
async def test_token_ids_outside_the_vocabulary_are_refused(token_id: int) -> None:
    async with Pipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), None) as pipeline:
        with pytest.raises(InvalidRequest, match=r"prompt.token_ids is .*\[0, 97\)"):
            pipeline.submit(NewRequest((1, token_id), SamplingParams()), Collector())
