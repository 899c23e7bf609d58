"""One drafter process that serves two schedulers: neither sees the other, and a third one hears who they are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from minedraft import SamplingParams
from minedraft.errors import EXIT_CONFIG, ConfigError, ProtocolError
from minedraft.local import serve
from minedraft.messages import DraftCommand, DraftSpan, Proposal
from minedraft.rpc.worker_link import GrpcDrafter
from minedraft.types import Acceptance, Batch, RoundId, SequenceSpec
from tests.support.tiny_models import add_noise, make_tiny_model
from tests.support.worker_process import WorkerProcess, worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHARE = 40
COMMON = ("--dtype", "float32", "--block-size", "4", "--device", "cpu:0")
ANY = SequenceSpec(SamplingParams(temperature=0.0), 8, 0, Acceptance.GREEDY)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target, and a draft model that often agrees with it."""
    folder = tmp_path_factory.mktemp("models")
    return make_tiny_model(folder / "target", seed=1), add_noise(make_tiny_model(folder / "draft", seed=1), 0.05)


@pytest.fixture(scope="module")
def shared(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A drafter process with two sessions, which all tests of this file use."""
    flags = ("--model", str(models[1]), *COMMON, "--num-blocks", str(2 * SHARE), "--sessions", "2")
    with worker("drafter", tmp_path_factory.mktemp("run"), *flags) as drafter:
        yield drafter


async def draft(link: GrpcDrafter, number: int, prompts: Sequence[Sequence[int]]) -> tuple[Proposal, ...]:
    """Draft four tokens after each prompt; the requests have the same ids in every call."""
    spans = [DraftSpan(n, 0, tuple(prompt), 4, ANY) for n, prompt in enumerate(prompts, 1)]
    reply = await link.draft(DraftCommand(RoundId(link.info.epoch, Batch.A, number), tuple(spans)))
    assert reply.num_free_blocks <= SHARE
    return reply.proposals


async def connect(drafter: WorkerProcess) -> GrpcDrafter:
    return await GrpcDrafter.connect(drafter.address, connect_timeout_s=60)


async def test_the_same_request_ids_mean_different_requests_and_a_fault_of_one_is_not_the_other_s(
    shared: WorkerProcess,
) -> None:
    prompts = [[[5, 17, 30, 200, 11]], [[9, 9, 40, 41, 42, 43], [3, 8, 3]]]
    alone = []
    for batch in prompts:
        async with await connect(shared) as link:
            alone.append(await draft(link, 1, batch))
    async with await connect(shared) as one, await connect(shared) as two:
        assert one.info.num_blocks == two.info.num_blocks == SHARE
        together = await asyncio.gather(draft(one, 1, prompts[0]), draft(two, 1, prompts[1]))
        assert list(together) == alone
        unknown = DraftCommand(RoundId(one.info.epoch, Batch.A, 2), (DraftSpan(77, 3, (1,), 4),))
        with pytest.raises(ProtocolError, match="request_id is 77: unknown"):
            await one.draft(unknown)
        with pytest.raises(ProtocolError, match="KV blocks"):
            await draft(one, 3, [[7] * 60, [8] * 60, [9] * 60])
        assert await two.release([]) == SHARE - 5, "as many as its own requests need, whatever the other wants"
        with pytest.raises(ConfigError, match=rf"in use by .* {os.getpid()} on .*; a worker serves 2 schedulers"):
            await GrpcDrafter.connect(shared.address, connect_timeout_s=0.1)
        await one.close()
        # Request 2 of the second session goes on from its own KV.
        tokens = together[1][1].tokens
        span = DraftSpan(2, 3, tokens[:1], 4)
        reply = await two.draft(DraftCommand(RoundId(two.info.epoch, Batch.A, 2), (span,)))
        assert reply.proposals[0].tokens[:3] == tokens[1:]
        async with await connect(shared) as third:
            assert await third.release([]) == SHARE, "all of the share is free again"
            assert await draft(third, 1, prompts[0]) == alone[0]


async def test_two_services_share_a_drafter_and_the_end_of_one_is_not_noticed_by_the_other(
    shared: WorkerProcess, models: tuple[Path, Path]
) -> None:
    own = {"target": models[0], "draft_address": shared.address, "mode": "minedraft", "draft_len": 3}
    own |= {"dtype": "float32", "block_size": 4, "num_blocks": 200, "max_batch_size": 2}
    prompts = [[5, 17, 30, 200, 11], [9, 9, 40, 41], [3], [77, 60, 5, 5, 8, 1]]
    brief, endless = (SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (24, 100))

    async with serve(**own) as first:
        alone = [(await first.complete(prompt, brief)).token_ids for prompt in prompts]
        async with serve(**own) as second:
            long = [asyncio.create_task(second.complete(prompt, endless)) for prompt in prompts]
            answers = await asyncio.gather(
                *(service.complete(p, brief) for p in prompts for service in (first, second))
            )
            assert [answer.token_ids for answer in answers[::2]] == alone
            assert [answer.token_ids for answer in answers[1::2]] == alone
            assert (await second.status()).accepted_drafts > 0
            for task in long:
                task.cancel()
        before = await first.status()
        assert [(await first.complete(prompt, brief)).token_ids for prompt in prompts] == alone
        after = await first.status()
        assert after.state == "serving"
        assert after.accepted_drafts > before.accepted_drafts, "it drafts on"


def test_a_verifier_is_for_one_scheduler_and_a_share_needs_blocks(models: tuple[Path, Path], tmp_path: Path) -> None:
    for role, more, said in (
        ("verifier", (), "sessions is 2: a verifier serves one scheduler"),
        ("drafter", ("--num-blocks", "15"), "sessions is 2: each session needs 8 KV blocks, and num_blocks is 15"),
    ):
        with worker(role, tmp_path, "--model", str(models[0]), "--sessions", "2", "--check", *more) as process:
            assert process.wait(60) == EXIT_CONFIG
            assert said in process.said
