"""Drafters that are no help: the answers are the target's own, and the service soon goes on without them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import FixedDraftLen, FixedMode
from minedraft.core.request import NewRequest
from minedraft.sampling_params import SamplingParams
from minedraft.server.watching import watched
from minedraft.settings.service import Settings
from minedraft.types import Mode
from scripts.lib.sink import Collector
from tests.support.counted import CountedPipeline
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor
from tests.support.tiny_models import add_noise, make_tiny_model

pytestmark = pytest.mark.slow

NUM_NEW = 60
PROMPTS = [tuple(60 + (n * i) % 250 for i in range(1, 4 + n % 5)) for n in range(1, 17)]


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target") / "model", seed=1)


class Service:
    """Target and draft model in this process, and what the watchdog says."""

    def __init__(self, target_dir: Path, draft_dir: Path | None, mode: Mode) -> None:
        self.verifier = InProcessVerifier(load_executor(target_dir, num_blocks=1024))
        self.drafter = None
        if draft_dir is not None:
            self.drafter = InProcessDrafter(load_executor(draft_dir, num_blocks=1024), self.verifier)
        self.told: list[events.DraftingSuspended] = []
        self.failed: list[events.Event] = []
        self.lens: list[int] = []  # of sequences that drafts were asked for
        limits = SchedulerLimits(mode, 8, 4, max_model_len=512)
        policies = watched(Settings(), FixedDraftLen(), FixedMode())
        self.pipeline = CountedPipeline(limits, self.verifier, self.drafter, observers=[self.observe], **policies)

    def observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.DraftingSuspended():
                self.told.append(event)
            case events.CommandFailed() | events.WorkerLeft() | events.PolicyReplaced():
                self.failed.append(event)

    async def answer(self, params: SamplingParams) -> list[list[int]]:
        sinks = [Collector() for _ in PROMPTS]
        for prompt, sink in zip(PROMPTS, sinks, strict=True):
            self.pipeline.submit(NewRequest(prompt, params, params.seed or 0), sink)
        await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 60)
        assert [sink.error for sink in sinks] == [None] * len(sinks)
        return [sink.tokens for sink in sinks]


GREEDY = SamplingParams(max_new_tokens=NUM_NEW, ignore_eos=True)
SEEDED = SamplingParams(
    max_new_tokens=NUM_NEW, ignore_eos=True, temperature=0.1, seed=5
)  # warmer, the shared noise makes even noise agree


@pytest.fixture(scope="module")
def truth(target_dir: Path) -> dict[float, list[list[int]]]:
    """What the target says without a drafter, by temperature."""

    async def answers() -> dict[float, list[list[int]]]:
        service = Service(target_dir, None, Mode.AR)
        async with service.pipeline:
            return {params.temperature: await service.answer(params) for params in (GREEDY, SEEDED)}

    return asyncio.run(answers())


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def noise(folder: Path) -> Path:
    return make_tiny_model(folder, seed=99)


def one_token(folder: Path) -> Path:
    """All logits are 0, so its best token is the first one for ever."""
    return changed(make_tiny_model(folder, seed=1), lambda weights: weights["model.norm.weight"].zero_())


def not_a_number(folder: Path) -> Path:
    """It is sound for the first ids, which the load's own check uses."""
    return changed(
        make_tiny_model(folder, seed=1), lambda weights: weights["model.embed_tokens.weight"][60:].fill_(torch.nan)
    )


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    ("make", "cause"),
    [(noise, "does not fit the target"), (one_token, "does not fit the target"), (not_a_number, "not finite")],
    ids=["noise", "one token", "not a number"],
)
async def test_a_drafter_that_is_no_help_is_left_out_and_the_answers_are_the_targets_own(
    make: Callable[[Path], Path],
    cause: str,
    params: SamplingParams,
    target_dir: Path,
    truth: dict[float, list[list[int]]],
    tmp_path: Path,
) -> None:
    service = Service(target_dir, make(tmp_path / "draft"), Mode.MINEDRAFT)
    async with service.pipeline as pipeline:
        assert await service.answer(params) == truth[params.temperature]
        (told,) = service.told
        assert told.request_id is None
        assert cause in told.cause
        limits = pipeline.scheduler.limits
        assert (limits.mode, limits.max_batch_size) == (Mode.AR, 16)
        drafted = pipeline.counters.verified_drafts
        assert await service.answer(params) == truth[params.temperature]
        assert pipeline.counters.verified_drafts == drafted, "nothing is drafted any more"
    assert service.failed == []


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_a_draft_model_with_a_shorter_context_drafts_as_far_as_it_reaches(
    params: SamplingParams, target_dir: Path, truth: dict[float, list[list[int]]], tmp_path: Path
) -> None:
    context = 32
    draft = add_noise(make_tiny_model(tmp_path / "draft", seed=1, max_position_embeddings=context), 0.05)
    service = Service(target_dir, draft, Mode.MINEDRAFT)
    async with service.pipeline as pipeline:
        assert service.drafter is not None
        assert service.drafter.info.max_model_len == context
        assert await service.answer(params) == truth[params.temperature]
        counters = pipeline.counters
        assert counters.accepted_drafts > 0
        assert counters.verified_drafts < len(PROMPTS) * (context + 4) * 4
        assert pipeline.scheduler.limits.mode is Mode.MINEDRAFT, "a short drafter is no broken one"
    assert service.failed == []
    assert service.told == []
