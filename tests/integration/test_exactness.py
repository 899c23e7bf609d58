"""What comes out is what the target alone would say: scheduler, pipeline, actors and models together.

fp32 on random models; the processes and gRPC in between are covered by the launch tests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minedraft.core.events import Event, RoundCommitted
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import FixedDraftLen
from minedraft.core.policy.tetris import TetrisPolicy
from minedraft.core.request import NewRequest
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import WorkerLost
from minedraft.messages import DraftCommand, DraftReply, Proposal
from minedraft.observe.faults import FaultLog
from minedraft.sampling_params import SamplingParams
from minedraft.types import DraftMethod, FinishReason, Mode, ScoreKind
from scripts.lib.sink import Collector
from tests.support.counted import CountedPipeline
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor
from tests.support.stepping import until
from tests.support.tiny_models import add_noise, make_tiny_model, resize_rows, write_tiny_tokenizer

pytestmark = pytest.mark.slow

EOS_ID = 2
NUM_NEW = 40


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target") / "model", seed=1)


@pytest.fixture(scope="module")
def draft_dir(target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target with noise on its weights: right often enough to accept, wrong often enough to reject."""
    return add_noise(make_tiny_model(tmp_path_factory.mktemp("draft") / "model", seed=1), 0.05)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    rng = random.Random(5)
    return [tuple(rng.randrange(3, 300) for _ in range(n)) for n in (1, 2, 3, 7, 16, 31, 5, 12, 64, 4)]


@pytest.fixture(scope="module")
def truth(target_dir: Path, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """`generate` of transformers, one prompt at a time, as the model does it by itself."""
    model = AutoModelForCausalLM.from_pretrained(target_dir)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        full = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=EOS_ID
        )
        outputs.append(full[0, len(prompt) :].tolist())
    return outputs


def limits(mode: Mode, max_batch_size: int, draft_len: int = 4, prefill_chunk: int = 24) -> SchedulerLimits:
    return SchedulerLimits(mode, max_batch_size, draft_len, prefill_chunk, max_model_len=512)


async def answer(
    pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], params: SamplingParams, seeds: Sequence[int] | None = None
) -> list[Collector]:
    answers = [Collector() for _ in prompts]
    for index, prompt in enumerate(prompts):
        seed = seeds[index] if seeds is not None else params.seed or 0
        stop_ids = () if params.ignore_eos else (EOS_ID,)
        pipeline.submit(NewRequest(prompt, params, seed, stop_ids), answers[index])
    await asyncio.wait_for(asyncio.gather(*(a.done.wait() for a in answers)), 60)
    assert [a.error for a in answers] == [None] * len(answers)
    return answers


@pytest.mark.parametrize("max_batch_size", [1, 2, 8])
@pytest.mark.parametrize("mode", list(Mode))
async def test_greedy_tokens_equal_generate_in_every_mode_and_batch_size(
    mode: Mode,
    max_batch_size: int,
    target_dir: Path,
    draft_dir: Path,
    prompts: list[tuple[int, ...]],
    truth: list[list[int]],
) -> None:
    verifier = InProcessVerifier(load_executor(target_dir))
    drafter = InProcessDrafter(load_executor(draft_dir), verifier)
    async with CountedPipeline(limits(mode, max_batch_size), verifier, drafter) as pipeline:
        answers = await answer(pipeline, prompts, SamplingParams(max_new_tokens=NUM_NEW))
        assert [a.tokens for a in answers] == truth
        counters = pipeline.counters
        if mode.has_drafts:
            assert 0 < counters.accepted_drafts < counters.verified_drafts, "both outcomes must occur"
        assert (0 < counters.used_runs < counters.runs_ahead) is mode.runs_ahead, "both outcomes must occur"


@pytest.mark.parametrize("mode", [Mode.MINEDRAFT, Mode.PEARL])
@pytest.mark.parametrize("has_model", [False, True])
async def test_prompt_lookup_drafts_leave_the_tokens_unchanged(
    has_model: bool,
    mode: Mode,
    target_dir: Path,
    draft_dir: Path,
    prompts: list[tuple[int, ...]],
    truth: list[list[int]],
) -> None:
    """Each prompt comes again with its answer before it, so that the answer can be looked up."""
    again = [(*prompt, *output, *prompt) for prompt, output in zip(prompts, truth, strict=True)]
    params, outputs = SamplingParams(max_new_tokens=NUM_NEW), []
    for lookup in (False, True):
        verifier = InProcessVerifier(load_executor(target_dir))
        executor = load_executor(draft_dir) if has_model else None
        drafter = InProcessDrafter(executor, verifier, lookup=lookup) if lookup or has_model else None
        async with CountedPipeline(limits(mode, 3), verifier, drafter) as pipeline:
            answers = await answer(pipeline, [*prompts, *again], params)
            assert [a.tokens for a in answers[: len(prompts)]] == truth
            outputs.append([a.tokens for a in answers])
            looked_up = pipeline.counters.sources.get(DraftMethod.NGRAM)
            # Beside a model that runs ahead, most drafts are there before anything could be looked up.
            assert looked_up is None if not lookup else looked_up is not None or (has_model and mode.runs_ahead)
            if looked_up is not None:
                assert 0 < looked_up.accepted < looked_up.verified, "both outcomes must occur"
            assert pipeline.counters.failed_commands == 0
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("kind", [ScoreKind.PEAK, ScoreKind.DRAWN])
@pytest.mark.parametrize("mode", [Mode.SD, Mode.MINEDRAFT])
async def test_drafts_chosen_over_the_batch_leave_the_tokens_unchanged(
    mode: Mode,
    kind: ScoreKind,
    target_dir: Path,
    draft_dir: Path,
    prompts: list[tuple[int, ...]],
    truth: list[list[int]],
) -> None:
    verifier = InProcessVerifier(load_executor(target_dir))
    drafter = InProcessDrafter(load_executor(draft_dir), verifier, lookup=kind is ScoreKind.PEAK)
    wide = replace(limits(mode, 4, draft_len=2), extra_drafts=2, scores=kind)
    policy, verified = TetrisPolicy(FixedDraftLen(), 2), list[list[int]]()

    def observe(event: Event, now_s: float) -> None:
        if isinstance(event, RoundCommitted):
            verified.append([num_drafts for num_drafts, _ in event.accepted])

    async with CountedPipeline(wide, verifier, drafter, draft_policy=policy, observers=[observe]) as pipeline:
        answers = await answer(pipeline, prompts, SamplingParams(max_new_tokens=NUM_NEW))
        assert [a.tokens for a in answers] == truth
        counters = pipeline.counters
        assert 0 < counters.accepted_drafts < counters.verified_drafts
        assert max(map(sum, verified)) <= 2 * 4, "as many as without extra drafts"
        assert {1, 3} <= {number for numbers in verified for number in numbers}, "but not the same for each request"
        seeded = SamplingParams(temperature=1.0, seed=5, max_new_tokens=NUM_NEW)
        sampled = [a.tokens for a in await answer(pipeline, prompts, seeded)]
    async with CountedPipeline(limits(Mode.AR, 4), InProcessVerifier(load_executor(target_dir)), None) as pipeline:
        assert [a.tokens for a in await answer(pipeline, prompts, seeded)] == sampled


@pytest.mark.parametrize(
    ("draft_rows", "mode"), [(300, Mode.MINEDRAFT), (384, Mode.MINEDRAFT), (300, Mode.PEARL), (384, Mode.PEARL)]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_draft_model_with_fewer_or_more_rows_leaves_the_tokens_unchanged(
    temperature: float,
    draft_rows: int,
    mode: Mode,
    target_dir: Path,
    prompts: list[tuple[int, ...]],
    truth: list[list[int]],
    tmp_path: Path,
) -> None:
    padded = resize_rows(add_noise(make_tiny_model(tmp_path / "model", seed=1), 0.05), draft_rows)
    write_tiny_tokenizer(padded, vocab_size=280)  # all rows beyond it are padding, in both models
    with_high_ids = [*prompts, (318, 319, 5), (7, 310)]
    params = SamplingParams(temperature=temperature, max_new_tokens=NUM_NEW, seed=11, logit_bias={319: -1.0})
    outputs = []
    for has_drafter in (False, True):
        verifier = InProcessVerifier(load_executor(target_dir))
        drafter = InProcessDrafter(load_executor(padded), verifier) if has_drafter else None
        async with CountedPipeline(limits(mode, 4), verifier, drafter) as pipeline:
            outputs.append([a.tokens for a in await answer(pipeline, with_high_ids, params)])
            assert pipeline.drafter is drafter
            assert pipeline.counters.failed_commands == 0
            if has_drafter:
                assert pipeline.counters.accepted_drafts > 0
            if temperature == 0.0:
                plain = await answer(pipeline, prompts, SamplingParams(max_new_tokens=NUM_NEW))
                assert [a.tokens for a in plain] == truth
    assert outputs[0] == outputs[1]


async def test_unseeded_drafts_of_padding_rows_are_never_proposed(target_dir: Path, tmp_path: Path) -> None:
    """Under rejection sampling q itself must be without them: cutting a proposal at such an id would
    change the law of what follows."""
    padded = resize_rows(make_tiny_model(tmp_path / "model", seed=1), 384)
    verifier = InProcessVerifier(load_executor(target_dir))
    drafter = InProcessDrafter(load_executor(padded), verifier)
    seen: list[Proposal] = []
    ask = drafter.draft

    async def draft(command: DraftCommand) -> DraftReply:
        reply = await ask(command)
        seen.extend(reply.proposals)
        return reply

    drafter.draft = draft  # type: ignore[method-assign]
    async with CountedPipeline(limits(Mode.SD, 8), verifier, drafter) as pipeline:
        params = SamplingParams(temperature=1.5, max_new_tokens=20, ignore_eos=True)
        await answer(pipeline, [(n,) for n in range(3, 11)], params, seeds=range(8))
    ids = [id_ for p in seen if p.q for id_ in np.frombuffer(p.q.ids.data, "<i4").tolist()]
    assert len(ids) > 1000
    assert max(ids) < 320
    assert all(len(p.tokens) > 0 for p in seen)


@pytest.mark.parametrize("mode", [Mode.MINEDRAFT, Mode.PEARL])
async def test_a_draft_model_that_computes_nan_is_counted_said_a_few_times_and_costs_only_drafts(
    mode: Mode,
    target_dir: Path,
    prompts: list[tuple[int, ...]],
    truth: list[list[int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = make_tiny_model(tmp_path / "model", seed=1)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][60:] = torch.nan  # the load's own check uses the first ids
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    verifier = InProcessVerifier(load_executor(target_dir))
    drafter, faults = InProcessDrafter(load_executor(broken), verifier), FaultLog()
    async with CountedPipeline(limits(mode, 4), verifier, drafter, observers=[faults.observe]) as pipeline:
        answers = await answer(pipeline, prompts, SamplingParams(max_new_tokens=NUM_NEW))
    assert [a.tokens for a in answers] == truth
    assert faults.counts.keys() == {"drafter_numeric"}
    said = [record for record in caplog.records if "not finite" in record.message]
    assert 1 <= len(said) <= 10


@pytest.mark.parametrize(("mode", "temperature"), [(Mode.MINEDRAFT, 0.0), (Mode.MINEDRAFT, 0.8), (Mode.PEARL, 0.8)])
async def test_a_verifier_lost_and_replaced_leaves_the_tokens_unchanged(
    target_dir: Path, draft_dir: Path, prompts: list[tuple[int, ...]], mode: Mode, temperature: float
) -> None:
    """Twice, in the middle of the answers: each new one recomputes what the last one had."""
    params = SamplingParams(max_new_tokens=NUM_NEW, temperature=temperature, seed=5, ignore_eos=True)
    async with CountedPipeline(limits(Mode.AR, 4), InProcessVerifier(load_executor(target_dir)), None) as plain:
        undisturbed = [a.tokens for a in await answer(plain, prompts, params)]
    executor = load_executor(target_dir)
    verifier = InProcessVerifier(executor)
    drafter = InProcessDrafter(load_executor(draft_dir), verifier)
    async with CountedPipeline(limits(mode, 4), verifier, drafter, verifier_returns=True) as pipeline:
        answering = asyncio.create_task(answer(pipeline, prompts, params))
        for num_tokens in (len(prompts) * 3, len(prompts) * 8):
            await until(lambda n=num_tokens: pipeline.counters.output_tokens >= n)
            pipeline.lose_verifier(WorkerLost("verifier: killed"))
            executor.release_all()
            pipeline.gain_verifier(InProcessVerifier(executor))
        assert [a.tokens for a in await answering] == undisturbed
        assert pipeline.counters.lost_workers == 2
        assert pipeline.counters.accepted_drafts > 0


@pytest.mark.parametrize("mode", [Mode.MINEDRAFT, Mode.PEARL])
async def test_preemption_and_aborted_neighbours_leave_the_tokens_unchanged(
    mode: Mode, target_dir: Path, draft_dir: Path, prompts: list[tuple[int, ...]], truth: list[list[int]]
) -> None:
    # 32 blocks of 4 tokens: about two of the longer requests at a time.
    verifier = InProcessVerifier(load_executor(target_dir, num_blocks=32))
    drafter = InProcessDrafter(load_executor(draft_dir, num_blocks=32), verifier)
    async with CountedPipeline(limits(mode, 4), verifier, drafter) as pipeline:
        victims = [Collector() for _ in range(4)]
        ids = [
            pipeline.submit(NewRequest((9, 9, n), SamplingParams(max_new_tokens=90, ignore_eos=True)), victim)
            for n, victim in enumerate(victims)
        ]
        answering = asyncio.create_task(answer(pipeline, prompts, SamplingParams(max_new_tokens=NUM_NEW)))
        for request_id, victim in zip(ids, victims, strict=True):
            await until(lambda v=victim: len(v.tokens) >= 5 or v.done.is_set())
            pipeline.abort(request_id)
        assert [a.tokens for a in await answering] == truth
        assert pipeline.counters.preemptions > 0
        await until(lambda: verifier.executor.num_free_blocks == 32)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
async def test_a_seeded_request_gives_the_same_tokens_in_every_mode_alone_or_in_a_crowd(
    temperature: float, target_dir: Path, draft_dir: Path, prompts: list[tuple[int, ...]]
) -> None:
    params = SamplingParams(
        temperature=temperature,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        seed=77,
        max_new_tokens=24,
    )
    outputs: list[list[int]] = []
    for mode, draft_len, crowd in [
        (Mode.AR, 0, False),
        (Mode.SD, 3, False),
        (Mode.MINEDRAFT, 5, True),
        (Mode.MINEDRAFT, 2, False),
        (Mode.PEARL, 1, False),
        (Mode.PEARL, 4, True),
        (Mode.AR, 0, True),
    ]:
        verifier = InProcessVerifier(load_executor(target_dir))
        drafter = InProcessDrafter(load_executor(draft_dir), verifier)
        async with CountedPipeline(limits(mode, 6, draft_len), verifier, drafter) as pipeline:
            neighbours = prompts if crowd else []
            answers = await answer(pipeline, [*neighbours[:5], prompts[3], *neighbours[5:]], params)
            outputs.append(answers[5 if crowd else 0].tokens)
    assert all(tokens == outputs[0] for tokens in outputs[1:])


async def test_logprobs_are_the_targets_own_whatever_was_drafted(
    target_dir: Path, draft_dir: Path, prompts: list[tuple[int, ...]]
) -> None:
    verifier = InProcessVerifier(load_executor(target_dir))
    drafter = InProcessDrafter(load_executor(draft_dir), verifier)
    params = SamplingParams(max_new_tokens=12, logprobs=2, ignore_eos=True)
    async with CountedPipeline(limits(Mode.MINEDRAFT, 2), verifier, drafter) as pipeline:
        (got,) = await answer(pipeline, prompts[3:4], params)
    model = AutoModelForCausalLM.from_pretrained(target_dir)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompts[3], *got.tokens]])).logits[0, len(prompts[3]) - 1 : -1]
    expected = torch.log_softmax(logits.float(), dim=-1)
    assert len(got.logprobs) == 12
    for row, token, entry in zip(expected, got.tokens, got.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert list(entry.top_ids) == row.topk(2).indices.tolist()
        assert list(entry.top_logprobs) == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


async def test_min_new_tokens_keeps_stop_tokens_out_at_every_drafted_position(
    target_dir: Path, draft_dir: Path, prompts: list[tuple[int, ...]], truth: list[list[int]]
) -> None:
    verifier = InProcessVerifier(load_executor(target_dir))
    drafter = InProcessDrafter(load_executor(draft_dir), verifier)
    stop_id = truth[2][4]  # greedy would stop here
    params = SamplingParams(max_new_tokens=20, min_new_tokens=15, stop_token_ids=(stop_id,), ignore_eos=True)
    async with CountedPipeline(limits(Mode.MINEDRAFT, 2), verifier, drafter) as pipeline:
        got = Collector()
        pipeline.submit(NewRequest(prompts[2], params, 0, (stop_id,)), got)
        await asyncio.wait_for(got.done.wait(), 30)
    assert stop_id not in got.tokens[:15]
    assert len(got.tokens) >= 16 or got.reason is FinishReason.STOP
