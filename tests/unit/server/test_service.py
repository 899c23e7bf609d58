"""The service without any door: calls are values, failures are typed, and each that fails is counted once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from minedraft import SamplingParams
from minedraft.core.scheduler import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import (
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    InternalError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from minedraft.prompts import GenerateCall, TokenPrompt
from minedraft.server.service import InferenceService
from minedraft.settings.loading import load_settings
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import FinishReason, LoanTerms, Mode
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation
from tests.support.tiny_models import write_tiny_tokenizer

PROMPT = [5, 6, 7]
CONTEXT = 1 << 15  # some seconds of answer, where a refusal of a name in use takes 0.2


def a_call(num_tokens: int, request_id: str = "") -> GenerateCall:
    return GenerateCall(TokenPrompt(tuple(PROMPT)), SamplingParams(max_new_tokens=num_tokens), request_id)


async def tokens_of(service: InferenceService, call: GenerateCall) -> list[int]:
    async with aclosing(service.generate(call, "me")) as outputs:
        return [token_id async for output in outputs for token_id in output.token_ids]


@pytest.fixture
def closed(tmp_path: Path) -> InferenceService:
    write_tiny_tokenizer(tmp_path, vocab_size=VOCAB_SIZE, eos=None)
    settings = load_settings({"target": tmp_path, "draft_method": "ngram", "allow_configure": True})
    return InferenceService(settings, Tokenizer.load(tmp_path))


@pytest.fixture
async def service(closed: InferenceService) -> AsyncIterator[InferenceService]:
    verifier = FakeVerifier(num_blocks=CONTEXT, max_model_len=CONTEXT)
    async with Pipeline(SchedulerLimits(max_model_len=CONTEXT), verifier, FakeDrafter()) as pipeline:
        await closed.open(pipeline)
        yield closed


async def test_it_answers_aborts_and_tells_its_status(service: InferenceService) -> None:
    assert await tokens_of(service, a_call(40)) == continuation(PROMPT, 40)
    async with aclosing(service.generate(a_call(CONTEXT - 8, "mine"), "me")) as outputs:
        first = await anext(outputs)
        assert first.request_id == "mine"
        with pytest.raises(DuplicateRequest):
            await tokens_of(service, a_call(1, "mine"))
        assert service.abort("mine")
        *_, last = [output async for output in outputs]
    assert last.finish_reason is FinishReason.ABORT
    assert not service.abort("mine")
    assert service.status().state == "serving"


async def test_it_refuses_at_once_before_it_is_open_and_when_it_drains(closed: InferenceService) -> None:
    with pytest.raises(Unavailable, match="still starting"):
        closed.generate(a_call(1), "me")
    await closed.drain(1.0)
    with pytest.raises(Draining):
        closed.generate(a_call(1), "me")
    with pytest.raises(Draining):
        await closed.lend().__aenter__()


async def test_it_is_lent_with_terms_that_hold_until_the_end(service: InferenceService) -> None:
    async with service.lend() as lent:
        await lent.apply(LoanTerms(Mode.SD, max_batch_size=1, draft_len=2))
        status = service.status()
        assert (status.mode, status.max_batch_size, status.draft_len) == ("sd", 1, 2)
        with pytest.raises(Unavailable, match="another client"):
            await service.lend().__aenter__()
    assert service.status().mode == "minedraft"


async def test_it_is_not_lent_as_what_its_drafter_cannot_do(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service.lend() as lent:
        await lent.apply(LoanTerms(Mode.PEARL, max_batch_size=1, draft_len=2))
        monkeypatch.setattr(service._pipeline.scheduler.book, "can_run_ahead", False)
        with pytest.raises(InvalidRequest, match="mode is 'pearl': a head reads what the target has verified"):
            await lent.apply(LoanTerms(Mode.PEARL, max_batch_size=1, draft_len=2))
        await lent.apply(LoanTerms(Mode.SD, max_batch_size=1, draft_len=2))


@pytest.mark.parametrize(
    ("raised", "seen", "reason"),
    [
        (InvalidRequest("n", 0, "at least 1"), InvalidRequest, "INVALID_REQUEST"),
        (Overloaded("full"), Overloaded, "OVERLOADED"),
        (KeyError("a bug"), InternalError, "INTERNAL"),
    ],
)
def test_a_failure_is_counted_once_and_a_foreign_one_is_an_internal_error(closed, raised, seen, reason) -> None:
    with pytest.raises(seen), closed.counted("a call"):
        raise raised
    assert closed.status().errors == {reason: 1}


def test_a_cancellation_counts_as_what_the_door_says_it_means(closed: InferenceService) -> None:
    with pytest.raises(asyncio.CancelledError), closed.counted("a call"):
        raise asyncio.CancelledError
    assert closed.status().errors == {}
    with pytest.raises(asyncio.CancelledError), closed.counted("a call", DeadlineExceeded):
        raise asyncio.CancelledError
    assert closed.status().errors == {"DEADLINE_EXCEEDED": 1}
