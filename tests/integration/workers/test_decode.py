"""Draft and verify by hand through real worker processes: what comes out is what the target says alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minedraft.errors import ProtocolError, StaleRound
from minedraft.messages import DraftCommand, DraftSpan, VerifyCommand, VerifySpan
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, DraftMethod, RoundId, SequenceSpec
from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import worker

pytestmark = pytest.mark.slow

PROMPTS = ([5, 17, 30, 200, 11], [9, 9, 40, 41, 42, 43, 44, 9, 9], [3])
NUM_NEW = 24


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target, and a draft model that agrees with it often but not always: the same with some noise,
    and half its context."""
    folder = tmp_path_factory.mktemp("models")
    target = make_tiny_model(folder / "target", seed=1, max_position_embeddings=128)
    draft = make_tiny_model(folder / "draft", seed=1, max_position_embeddings=64)
    weights = load_file(draft / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for weight in weights.values():
        weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=generator) if weight.dim() > 1 else 0.0
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    return target, draft


@pytest.fixture(scope="module")
def expected(models: tuple[Path, Path]) -> list[list[int]]:
    """The target's own greedy continuations."""
    model = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    tokens = [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0].tolist()
        for prompt in PROMPTS
    ]
    return [whole[len(prompt) :] for whole, prompt in zip(tokens, PROMPTS, strict=True)]


@pytest.fixture(scope="module")
def workers(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Addresses of a drafter and a verifier that all tests of this file use, each with epochs of its own."""
    folder = tmp_path_factory.mktemp("run")
    common = ("--dtype", "float32", "--num-blocks", "64", "--block-size", "4")
    with (
        worker("drafter", folder, "--model", str(models[1]), "--no-lookup", *common) as drafter,
        worker("verifier", folder, "--model", str(models[0]), *common) as verifier,
    ):
        yield drafter.address, verifier.address


@pytest_asyncio.fixture
async def links(workers: tuple[str, str]) -> AsyncIterator[tuple[GrpcDrafter, GrpcVerifier]]:
    async with (
        await GrpcDrafter.connect(workers[0], connect_timeout_s=100) as drafter,
        await GrpcVerifier.connect(workers[1], connect_timeout_s=100) as verifier,
    ):
        yield drafter, verifier


@dataclass
class Sequence:
    """The least a scheduler knows of a request."""

    id: int
    tokens: list[int]
    spec: SequenceSpec
    drafter_len: int = 0
    verifier_len: int = 0
    accepted: list[int] = field(default_factory=list)


def make_sequence(request_id: int, prompt: list[int], **sampling: object) -> Sequence:
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    if params.is_greedy:
        acceptance = Acceptance.GREEDY
    else:
        acceptance = Acceptance.REJECTION if params.seed is None else Acceptance.COUPLED
    return Sequence(request_id, list(prompt), SequenceSpec(params, len(prompt), 77, acceptance))


class Driver:
    """Plays the scheduler for one batch."""

    def __init__(self, drafter: GrpcDrafter, verifier: GrpcVerifier, batch: Batch = Batch.A) -> None:
        self.drafter, self.verifier, self.batch, self.number = drafter, verifier, batch, 0
        self.has_forward = True

    def draft_command(self, sequences: list[Sequence], draft_len: int) -> DraftCommand:
        spans = [
            DraftSpan(
                s.id, s.drafter_len, tuple(s.tokens[s.drafter_len :]), draft_len, None if s.drafter_len else s.spec
            )
            for s in sequences
        ]
        return DraftCommand(RoundId(self.drafter.info.epoch, self.batch, self.number), tuple(spans))

    def verify_command(self, sequences: list[Sequence], drafts: dict[int, object]) -> VerifyCommand:
        spans = [
            VerifySpan(
                s.id,
                s.verifier_len,
                tuple(s.tokens[s.verifier_len :]),
                drafts[s.id].tokens if s.id in drafts else (),
                drafts[s.id].q if s.id in drafts else None,
                spec=None if s.verifier_len else s.spec,
            )
            for s in sequences
        ]
        return VerifyCommand(RoundId(self.verifier.info.epoch, self.batch, self.number), tuple(spans))

    async def round(self, sequences: list[Sequence], draft_len: int) -> None:
        self.number += 1
        proposals = {}
        if draft_len:
            reply = await self.drafter.draft(self.draft_command(sequences, draft_len))
            proposals = {proposal.request_id: proposal for proposal in reply.proposals}
            assert reply.timing.busy_ns >= reply.timing.forward_ns
            assert (reply.timing.forward_ns > 0) == self.has_forward
        reply = await self.verifier.verify(self.verify_command(sequences, proposals))
        for sequence, verdict in zip(sequences, reply.verdicts, strict=True):
            committed_len = len(sequence.tokens)
            sequence.tokens.extend(verdict.tokens)
            sequence.verifier_len = committed_len + verdict.accepted_len
            sequence.accepted.append(verdict.accepted_len)
            if draft_len:
                num_drafts = len(proposals[sequence.id].tokens)
                is_looked_up = proposals[sequence.id].source is DraftMethod.NGRAM
                num_cached = 0 if is_looked_up else max(num_drafts - 1, 0)
                sequence.drafter_len = committed_len + min(verdict.accepted_len, num_cached)


@pytest.mark.parametrize("draft_len", [0, 1, 4])
async def test_greedy_output_is_the_targets_own(
    links: tuple[GrpcDrafter, GrpcVerifier], expected: list[list[int]], draft_len: int
) -> None:
    driver = Driver(*links)
    sequences = [make_sequence(id_, prompt) for id_, prompt in enumerate(PROMPTS)]
    assert await decode(driver, sequences, draft_len) == expected
    if draft_len:
        accepted = [n for s in sequences for n in s.accepted]
        assert 0 < sum(accepted) < draft_len * len(accepted), "the pair should agree sometimes, not always"
    for worker_link in links:
        assert await worker_link.release([s.id for s in sequences]) == worker_link.info.num_blocks
        assert worker_link.stats.wire_bytes > 0


async def decode(driver: Driver, sequences: list[Sequence], draft_len: int) -> list[list[int]]:
    """The first NUM_NEW output tokens of each sequence."""
    while pending := [s for s in sequences if len(s.tokens) - s.spec.prompt_len < NUM_NEW]:
        await driver.round(pending, draft_len)
    return [s.tokens[s.spec.prompt_len :][:NUM_NEW] for s in sequences]


async def test_a_seeded_request_gives_the_same_tokens_whatever_is_drafted_and_whoever_is_beside_it(
    links: tuple[GrpcDrafter, GrpcVerifier],
) -> None:
    sampling = {"temperature": 0.9, "top_k": 50, "seed": 77, "repetition_penalty": 1.3}
    driver = Driver(*links)
    crowd = [make_sequence(id_, prompt, **sampling) for id_, prompt in enumerate(PROMPTS)]
    together = await decode(driver, crowd, 4)
    assert sum(n for s in crowd for n in s.accepted) > 0
    for id_, prompt in enumerate(PROMPTS):
        alone = make_sequence(10 + id_, prompt, **sampling)
        assert await decode(driver, [alone], 0) == [together[id_]]


async def test_rejection_sampling_carries_q_from_drafter_to_verifier(links: tuple[GrpcDrafter, GrpcVerifier]) -> None:
    driver = Driver(*links)
    sequences = [make_sequence(id_, prompt, temperature=1.0, logprobs=2) for id_, prompt in enumerate(PROMPTS)]
    driver.number += 1
    reply = await driver.drafter.draft(driver.draft_command(sequences, 3))
    for proposal in reply.proposals:
        assert proposal.q is not None
        assert proposal.q.ids.shape == proposal.q.probs.shape == (3, 32)
    verdicts = (
        await driver.verifier.verify(driver.verify_command(sequences, {p.request_id: p for p in reply.proposals}))
    ).verdicts
    for verdict in verdicts:
        assert len(verdict.logprobs) == len(verdict.tokens) == verdict.accepted_len + 1
        assert all(len(entry.top_ids) == 2 for entry in verdict.logprobs)
    await decode(driver, [make_sequence(10 + id_, p, temperature=1.0) for id_, p in enumerate(PROMPTS)], 3)


async def test_a_repeated_round_leaves_the_kv_as_it_was(
    links: tuple[GrpcDrafter, GrpcVerifier], expected: list[list[int]]
) -> None:
    drafter, verifier = links
    driver = Driver(*links)
    sequences = [make_sequence(id_, prompt) for id_, prompt in enumerate(PROMPTS)]
    await driver.round(sequences, 3)
    again = Driver(*links)
    again.number = driver.number
    first = [make_sequence(id_, prompt) for id_, prompt in enumerate(PROMPTS)]
    proposed = await drafter.draft(again.draft_command(first, 3))
    checked = await verifier.verify(again.verify_command(first, {p.request_id: p for p in proposed.proposals}))
    assert [verdict.tokens for verdict in checked.verdicts] == [tuple(s.tokens[s.spec.prompt_len :]) for s in sequences]
    assert await decode(driver, sequences, 3) == expected


async def test_a_stale_round_or_an_unknown_request_changes_nothing(
    links: tuple[GrpcDrafter, GrpcVerifier], expected: list[list[int]]
) -> None:
    driver = Driver(*links)
    sequences = [make_sequence(id_, prompt) for id_, prompt in enumerate(PROMPTS)]
    await driver.round(sequences, 3)
    await driver.round(sequences, 3)
    driver.number -= 1
    with pytest.raises(StaleRound):
        await driver.verifier.verify(driver.verify_command(sequences, {}))
    driver.number += 2
    stranger = make_sequence(99, [1, 2])
    stranger.verifier_len = 1
    with pytest.raises(ProtocolError, match="request_id is 99: unknown, and"):
        await driver.verifier.verify(driver.verify_command([*sequences, stranger], {}))
    ahead = make_sequence(0, [1] * 60)
    ahead.verifier_len = 59
    driver.number += 1
    with pytest.raises(ProtocolError, match="prefix_len is 59"):
        await driver.verifier.verify(driver.verify_command([ahead], {}))
    assert await decode(driver, sequences, 3) == expected


async def test_a_command_beyond_the_kv_is_refused_and_changes_nothing(
    links: tuple[GrpcDrafter, GrpcVerifier], expected: list[list[int]]
) -> None:
    driver = Driver(*links)
    sequences = [make_sequence(id_, prompt) for id_, prompt in enumerate(PROMPTS)]
    await driver.round(sequences, 3)
    driver.number += 1
    crowd = [make_sequence(100 + id_, [5] * 40) for id_ in range(10)]
    with pytest.raises(ProtocolError, match="KV blocks"):
        await driver.verifier.verify(driver.verify_command([*sequences, *crowd], {}))
    assert await decode(driver, sequences, 3) == expected


async def test_drafting_gets_shorter_and_ends_with_the_drafters_context(
    links: tuple[GrpcDrafter, GrpcVerifier],
) -> None:
    driver = Driver(*links)
    limit = driver.drafter.info.max_model_len
    assert limit == 64 < driver.verifier.info.max_model_len
    sequence = make_sequence(1, [5, 6, 7] * 20)
    driver.number += 1
    reply = await driver.drafter.draft(driver.draft_command([sequence], 8))
    assert len(reply.proposals[0].tokens) == limit - 60 + 1
    sequence.tokens += [1] * 10
    sequence.drafter_len = 60
    driver.number += 1
    with pytest.raises(ProtocolError, match="at most 64 fit in the context"):
        await driver.drafter.draft(driver.draft_command([sequence], 8))


async def test_a_prompt_cached_in_chunks_decodes_the_same(
    links: tuple[GrpcDrafter, GrpcVerifier], expected: list[list[int]]
) -> None:
    drafter, verifier = links
    driver = Driver(*links)
    sequence = make_sequence(1, PROMPTS[1])
    for start in (0, 4):
        driver.number += 1
        chunk = tuple(sequence.tokens[start : start + 4])
        spec = None if start else sequence.spec
        reply = await drafter.prefill(
            DraftCommand(RoundId(drafter.info.epoch, Batch.A, driver.number), (DraftSpan(1, start, chunk, 0, spec),))
        )
        assert reply.proposals == ()
        span = VerifySpan(1, start, chunk, sample=False, spec=spec)
        checked = await verifier.verify(VerifyCommand(RoundId(verifier.info.epoch, Batch.A, driver.number), (span,)))
        assert checked.verdicts[0].tokens == ()
    sequence.drafter_len = sequence.verifier_len = 8
    assert await decode(driver, [sequence], 3) == [expected[1]]


async def test_ngram_drafts_keep_greedy_output(
    workers: tuple[str, str], models: tuple[Path, Path], expected: list[list[int]], tmp_path: Path
) -> None:
    with worker("drafter", tmp_path, "--model", str(models[0]), "--draft-method", "ngram") as process:
        async with (
            await GrpcDrafter.connect(process.address, connect_timeout_s=100) as drafter,
            await GrpcVerifier.connect(workers[1]) as verifier,
        ):
            driver = Driver(drafter, verifier)
            driver.has_forward = False
            sequences = [make_sequence(id_, prompt) for id_, prompt in enumerate(PROMPTS)]
            assert await decode(driver, sequences, 4) == expected
