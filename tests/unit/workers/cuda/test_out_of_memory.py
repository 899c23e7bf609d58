"""A device without room for a command: the longest request is refused, and everything else goes on as before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from minedraft.errors import ConfigError, MemoryExhausted, ModelError, ProtocolError
from minedraft.messages import DraftCommand, DraftSpan, VerifyCommand, VerifySpan
from minedraft.rpc.worker_link import GrpcVerifier
from minedraft.sampling_params import SamplingParams
from minedraft.settings.loading import load_worker_settings
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.composition import Plan
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.memory import CacheSize
from minedraft_workers.verifier import VerifierActor
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_actor, load_executor
from tests.support.served_worker import command, served
from tests.support.tiny_models import make_tiny_model

SPEC = SequenceSpec(SamplingParams(), 3, 0, Acceptance.GREEDY)
TORCH_SAYS = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.18 GiB of which ..."
NUM_BLOCKS = 64
A, B = (5, 17, 30), (9, 9, 40, 41, 42)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def executor(folder: Path) -> Executor:
    return load_executor(folder, num_blocks=NUM_BLOCKS)


def tighten(executor: Executor, fails: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a forward run out of memory, once it has written to the cache, if `fails` says so of its tokens."""
    run = executor._runner.run

    def run_and_fail(rows):
        logits = run(rows)
        if fails(len(rows.ids)):
            raise torch.OutOfMemoryError(TORCH_SAYS)
        return logits

    monkeypatch.setattr(executor._runner, "run", run_and_fail)


def verify(actor: VerifierActor, number: int, *spans: VerifySpan, released: tuple[int, ...] = ()) -> list:
    return list(actor.verify(VerifyCommand(RoundId(1, Batch.A, number), spans, released)).rows)


def test_the_longest_request_is_named_and_the_others_go_on_as_if_nothing_had_been(
    executor: Executor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = InProcessVerifier(load_executor(folder, num_blocks=NUM_BLOCKS)).actor
    actor = InProcessVerifier(executor).actor
    first = VerifySpan(1, 0, A, spec=SPEC)
    assert verify(actor, 1, first) == verify(undisturbed, 1, first)
    tighten(executor, lambda num_tokens: num_tokens > 5, monkeypatch)
    second, long = VerifySpan(1, 3, (7,), drafts=(8, 9)), VerifySpan(2, 0, B, spec=SPEC)
    with pytest.raises(MemoryExhausted) as caught:
        verify(actor, 2, second, long)
    assert caught.value.request_id == 2
    assert str(caught.value) == ("no memory for 6 tokens of 2 requests: CUDA out of memory. Tried to allocate 2.50 GiB")
    assert (executor.cached_len(1), executor.cached_len(2)) == (3, 0), "the rest of the cache was half written"
    assert verify(actor, 3, second, released=(2,)) == verify(undisturbed, 3, second)
    third = VerifySpan(1, 4, (3,))
    assert verify(actor, 4, third) == verify(undisturbed, 4, third)
    assert verify(actor, 5, long) == verify(undisturbed, 5, long), "a request that was refused may come again"
    actor.release((1, 2))
    assert executor.num_free_blocks == NUM_BLOCKS


def test_a_sampler_without_memory_refuses_too(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = InProcessVerifier(executor).actor
    expected = verify(actor, 1, VerifySpan(1, 0, A, spec=SPEC))

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError(TORCH_SAYS)

    with monkeypatch.context() as tight:
        tight.setattr("minedraft_workers.sampling.sampler.verify", fail)
        with pytest.raises(MemoryExhausted):
            verify(actor, 2, VerifySpan(1, 0, A, spec=SPEC))
    assert verify(actor, 3, VerifySpan(1, 0, A)) == expected


def test_a_draft_that_runs_out_of_memory_ends_with_the_drafts_it_has(
    executor: Executor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = InProcessDrafter(executor, InProcessVerifier(load_executor(folder, num_blocks=NUM_BLOCKS))).actor
    whole = draft(drafter, DraftSpan(1, 0, A, 4, SPEC))
    assert len(whole) == 4
    forwards = iter(range(10))
    with monkeypatch.context() as tight:
        tighten(executor, lambda num_tokens: next(forwards) == 2, tight)
        assert draft(drafter, DraftSpan(1, 0, A, 4)) == whole[:2]
    assert draft(drafter, DraftSpan(1, len(A), tuple(whole[:1]), 3)) == whole[1:]


def draft(actor: DrafterActor, span: DraftSpan) -> list[int]:
    rows = actor.draft(DraftCommand(RoundId(1, Batch.A, 1), (span,))).rows
    return list(rows[0].tokens)


def test_kernels_that_do_not_fit_are_gone_before_the_next_ones_count_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[weakref.ref[object]] = []

    def refuse(decoder: object, *args: object) -> None:
        tried.append(weakref.ref(decoder))
        raise ModelError("model", "m", "the numbers differ")

    def choose(size: CacheSize, *args: object) -> int:
        assert [decoder() for decoder in tried] == [None] * len(tried)
        return NUM_BLOCKS

    monkeypatch.setattr("minedraft_workers.execution.executor.check_layers", refuse)
    monkeypatch.setattr(CacheSize, "choose_blocks", choose)
    assert load_executor(folder).kernels == "transformers"
    assert len(tried) > 0


def test_a_model_that_does_not_fit_is_told_by_the_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*args: object, **settings: object) -> None:
        raise torch.OutOfMemoryError(TORCH_SAYS)

    flags = {"role": "verifier", "model": folder, "listen": "unix:/v.sock", "memory_share": 0.25}
    plan = Plan.make(load_worker_settings(flags))
    monkeypatch.setattr(PreTrainedModel, "to", run_out)
    told = r"memory_share is 0.25: model\d* does not fit on cpu:.*: CUDA out of memory. Tried to allocate 2.50 GiB; "
    with pytest.raises(ConfigError, match=told):
        load_actor(plan)


async def test_a_worker_lives_on_and_the_refusal_names_the_request(tmp_path: Path) -> None:
    async with served(Role.VERIFIER, tmp_path) as worker, await GrpcVerifier.connect(worker.address) as link:
        worker.actor.failure = MemoryExhausted("no memory for 1 tokens")
        worker.actor.failure.request_id = 1
        with pytest.raises(ProtocolError, match="no memory for 1 tokens") as caught:
            await link.verify(command(link, 1))
        assert caught.value.request_id == 1
        worker.actor.failure = None
        assert (await link.verify(command(link, 2))).verdicts
