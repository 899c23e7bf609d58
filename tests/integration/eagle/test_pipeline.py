"""Heads that read the target's features in the whole pipeline: scheduler, actors, target and head, in this process.

What comes out is what the target alone would say, and what the head proposes does not depend on how its features came
to it: with prompts in chunks, preempted, recomputed for a new drafter, by a new verifier.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.errors import WorkerLost
from minedraft.messages import DraftCommand, DraftReply
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from minedraft_workers.execution.eagle.head import EagleHead
from minedraft_workers.execution.executor import Executor
from scripts.lib.sink import Collector
from tests.integration.test_exactness import EOS_ID, answer
from tests.integration.test_real_stack import PROMPT, exact_law
from tests.support.counted import CountedPipeline
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor, load_tiny_head
from tests.support.native import needs_native
from tests.support.stepping import until
from tests.support.tiny_heads import LAYOUTS, make_tiny_head, soften_layers
from tests.support.tiny_models import make_tiny_model

pytestmark = pytest.mark.slow

NUM_NEW = 30
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sizes that the native kernels take."""
    return soften_layers(make_tiny_model(tmp_path_factory.mktemp("target") / "model", seed=1, layers=3, **SIZES), 0.05)


@pytest.fixture(scope="module", params=LAYOUTS)
def head_dir(request: pytest.FixtureRequest, target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that ignores features, some of whose drafts are accepted."""
    folder = tmp_path_factory.mktemp("head") / request.param
    layers = 2 if request.param == "minedraft" else 1
    return make_tiny_head(folder, target_dir, request.param, layers=layers, is_alike=True)


@pytest.fixture(scope="module")
def reading_head_dir(target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head whose drafts depend on every number of its features; few of them are accepted."""
    return make_tiny_head(tmp_path_factory.mktemp("reading") / "head", target_dir, "minedraft", layers=2, seed=4)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    rng = random.Random(5)
    return [tuple(rng.randrange(3, 300) for _ in range(n)) for n in (1, 2, 3, 60, 17, 33)]


@pytest.fixture(scope="module")
def truth(target_dir: Path, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(target_dir)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        full = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=EOS_ID
        )
        outputs.append(full[0, len(prompt) :].tolist())
    return outputs


@dataclass
class Run:
    """A pipeline over an executor and a head, which are there already, and what its drafters have proposed."""

    executor: Executor
    head: EagleHead
    mode: Mode = Mode.MINEDRAFT
    max_batch_size: int = 3
    draft_len: int = 3
    prefill_chunk: int = 24
    proposed: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    introduced: Counter[int] = field(default_factory=Counter)

    def start(self) -> CountedPipeline:
        limits = SchedulerLimits(self.mode, self.max_batch_size, self.draft_len, self.prefill_chunk, max_model_len=256)
        verifier = self.make_verifier()
        self.pipeline = CountedPipeline(limits, verifier, self.make_drafter(verifier), verifier_returns=True)
        return self.pipeline

    def make_verifier(self) -> InProcessVerifier:
        self.executor.release_all()
        return InProcessVerifier(self.executor)

    def make_drafter(self, verifier: InProcessVerifier) -> InProcessDrafter:
        drafter = InProcessDrafter(self.head, verifier)
        ask = drafter.draft

        async def draft(command: DraftCommand) -> DraftReply:
            self.introduced.update(span.request_id for span in command.spans if span.spec is not None)
            reply = await ask(command)
            self.proposed |= {(p.request_id, p.committed_len): p.tokens for p in reply.proposals}
            return reply

        drafter.draft = drafter.prefill = draft  # type: ignore[method-assign]
        return drafter

    def replace_drafter(self) -> None:
        self.pipeline.lose_drafter(WorkerLost("drafter: killed"))
        self.pipeline.gain_drafter(self.make_drafter(self.pipeline.verifier))

    def replace_verifier(self) -> None:
        self.pipeline.lose_verifier(WorkerLost("verifier: killed"))
        self.pipeline.gain_verifier(self.make_verifier())


GREEDY = SamplingParams(max_new_tokens=NUM_NEW)
ENDLESS = SamplingParams(max_new_tokens=NUM_NEW, ignore_eos=True)


async def test_greedy_tokens_equal_generate(
    target_dir: Path, head_dir: Path, prompts: list[tuple[int, ...]], truth: list[list[int]]
) -> None:
    run = Run(load_executor(target_dir), load_tiny_head(head_dir, target_dir))
    for run.mode, run.max_batch_size, run.prefill_chunk in [(Mode.MINEDRAFT, 2, 24), (Mode.SD, 8, 256)]:
        async with run.start() as pipeline:
            assert [a.tokens for a in await answer(pipeline, prompts, GREEDY)] == truth
            counters = pipeline.counters
            assert 0 < counters.accepted_drafts < counters.verified_drafts, "both outcomes must occur"
            assert counters.failed_commands == 0


async def test_preemption_and_aborted_neighbours_leave_the_tokens_unchanged(
    target_dir: Path, head_dir: Path, prompts: list[tuple[int, ...]], truth: list[list[int]]
) -> None:
    run = Run(load_executor(target_dir, num_blocks=40), load_tiny_head(head_dir, target_dir, num_blocks=30))
    run.max_batch_size = 4
    async with run.start() as pipeline:
        victims = [Collector() for _ in range(4)]
        ids = [
            pipeline.submit(NewRequest((9, 9, n), SamplingParams(max_new_tokens=90, ignore_eos=True)), victim)
            for n, victim in enumerate(victims)
        ]
        answering = asyncio.create_task(answer(pipeline, prompts, GREEDY))
        for request_id, victim in zip(ids, victims, strict=True):
            await until(lambda v=victim: len(v.tokens) >= 5 or v.done.is_set())
            pipeline.abort(request_id)
        assert [a.tokens for a in await answering] == truth
        counters = pipeline.counters
        assert counters.preemptions > 0
        assert counters.failed_commands == 0
        assert counters.accepted_drafts > 0
        await until(lambda: run.executor.num_free_blocks == 40 and run.head.num_free_blocks == 30)
        assert pipeline.scheduler.book._num_held == 0


@needs_native
async def test_drafts_do_not_depend_on_how_the_features_came(
    target_dir: Path, reading_head_dir: Path, prompts: list[tuple[int, ...]]
) -> None:
    """Bit for bit, so whatever is computed again is what was there before, and no row is a zero or another's."""
    executor = load_executor(target_dir, dtype="bfloat16")
    head = load_tiny_head(reading_head_dir, target_dir, dtype="bfloat16")
    assert executor.is_batch_invariant
    assert head.is_batch_invariant
    alone = Run(executor, head, Mode.SD, max_batch_size=1, prefill_chunk=256)
    async with alone.start() as pipeline:
        undisturbed = [a.tokens for a in await answer(pipeline, prompts, ENDLESS)]
        assert pipeline.counters.failed_commands == 0
    disturbed = Run(executor, head)
    async with disturbed.start() as pipeline:
        answering = asyncio.create_task(answer(pipeline, prompts, ENDLESS))
        for num_tokens, disturb in [
            (20, disturbed.replace_drafter),
            (50, disturbed.replace_verifier),
            (80, disturbed.replace_drafter),
            (110, disturbed.replace_verifier),
        ]:
            await until(lambda n=num_tokens: pipeline.counters.output_tokens >= n)
            disturb()
        assert [a.tokens for a in await answering] == undisturbed
        assert pipeline.counters.failed_commands == 0
    common = alone.proposed.keys() & disturbed.proposed.keys()
    assert len(common) > len(prompts) * NUM_NEW // 4
    assert {key: disturbed.proposed[key] for key in common} == {key: alone.proposed[key] for key in common}
    assert len(set(alone.proposed.values())) > len(common) // 2, "the drafts differ from place to place"
    assert max(disturbed.introduced.values()) > 1, "a request was introduced again, to a new drafter"


async def test_a_new_drafter_is_as_good_as_the_last_one_and_changes_no_token(
    target_dir: Path, prompts: list[tuple[int, ...]], truth: list[list[int]], tmp_path: Path
) -> None:
    head_dir = make_tiny_head(tmp_path / "head", target_dir, "eagle1", is_alike=True)
    run = Run(load_executor(target_dir), load_tiny_head(head_dir, target_dir))
    run.max_batch_size = 5
    async with run.start() as pipeline:
        answering = asyncio.create_task(answer(pipeline, prompts, GREEDY))
        await until(lambda: pipeline.counters.output_tokens >= len(prompts) * 8)
        run.replace_drafter()
        before = pipeline.counters.drafted_rows, pipeline.counters.accepted_drafts
        assert [a.tokens for a in await answering] == truth
        after = pipeline.counters.drafted_rows - before[0], pipeline.counters.accepted_drafts - before[1]
    assert max(run.introduced.values()) == 2, "requests from before go on with the new one"
    assert after[0] > 20
    assert after[1] / after[0] > 0.7 * before[1] / before[0]


async def test_a_seeded_request_gives_the_same_tokens_in_every_mode(
    target_dir: Path, head_dir: Path, prompts: list[tuple[int, ...]]
) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=77, max_new_tokens=24)
    executor, head = load_executor(target_dir), load_tiny_head(head_dir, target_dir)
    outputs = []
    for mode, draft_len, others in [
        (Mode.AR, 0, []), (Mode.SD, 3, []), (Mode.MINEDRAFT, 5, prompts), (Mode.MINEDRAFT, 2, [])
    ]:  # fmt: skip
        async with Run(executor, head, mode, 6, draft_len).start() as pipeline:
            answers = await answer(pipeline, [*others, prompts[4]], params)
            outputs.append(answers[-1].tokens)
            assert pipeline.counters.failed_commands == 0
    assert all(tokens == outputs[0] for tokens in outputs[1:])


async def test_unseeded_samples_follow_the_targets_law_through_rejection(tmp_path: Path) -> None:
    """Chi-square of 576 triples of tokens against their exact probabilities; the seeds are the test's own."""
    target_dir = soften_layers(make_tiny_model(tmp_path / "target", vocab_size=70, seed=3), 0.1)
    head_dir = make_tiny_head(tmp_path / "head", target_dir, "eagle3", draft_vocab_size=60, is_alike=True)
    run = Run(
        load_executor(target_dir, num_blocks=1024),
        load_tiny_head(head_dir, target_dir, num_blocks=1024),
    )
    run.max_batch_size, num_samples = 96, 576
    params = SamplingParams(temperature=0.9, top_k=3, max_new_tokens=5, ignore_eos=True)
    counts: Counter[tuple[int, ...]] = Counter()
    async with run.start() as pipeline:
        for first in range(0, num_samples, 192):
            answers = await answer(pipeline, [tuple(PROMPT)] * 192, params, range(first, first + 192))
            counts.update(tuple(a.tokens[1:4]) for a in answers)
        assert pipeline.counters.accepted_drafts > pipeline.counters.verified_drafts / 10, "drafts took part"
        assert pipeline.counters.failed_commands == 0
    law = exact_law(AutoModelForCausalLM.from_pretrained(target_dir), temperature=0.9, top_k=3, length=4)
    expected_of: Counter[tuple[int, ...]] = Counter()
    for tokens, probability in law.items():
        expected_of[tokens[1:]] += probability * num_samples
    assert set(counts) <= set(expected_of)
    common = [triple for triple, expected in expected_of.items() if expected >= 5]
    observed = [counts[t] for t in common] + [sum(n for t, n in counts.items() if t not in set(common))]
    expected = [expected_of[t] for t in common] + [num_samples - sum(expected_of[t] for t in common)]
    if expected[-1] < 5:
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    assert stats.chisquare(observed, expected).pvalue > 1e-4
