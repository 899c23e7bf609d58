"""The service without doors, on virtual time: each command of the verifier takes ROUND_S, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from minedraft import SamplingParams
from minedraft.core.limits import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import MineDraftError
from minedraft.prompts import GenerateCall, TokenPrompt
from minedraft.server.service import InferenceService
from minedraft.settings.loading import load_settings
from minedraft.text.tokenizer import Tokenizer
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier
from tests.support.tiny_models import write_tiny_tokenizer

PROMPT = [5, 6, 7]
CONTEXT = 4096
ROUND_S = 0.010


class TimedService:
    def __init__(self, service: InferenceService, pipeline: Pipeline, verifier: FakeVerifier) -> None:
        self.service, self.pipeline, self.verifier = service, pipeline, verifier

    async def answer(self, num_tokens: int, **call: Any) -> tuple[list[int], MineDraftError | None]:
        tokens: list[int] = []
        sampling = SamplingParams(max_new_tokens=num_tokens, **call.pop("sampling", {}))
        request = GenerateCall(call.pop("prompt", TokenPrompt(tuple(PROMPT))), sampling, **call)
        try:
            async with aclosing(self.service.generate(request, "me")) as outputs:
                async for output in outputs:
                    assert output.finish_reason is None or output.usage is not None
                    tokens += output.token_ids
        except MineDraftError as error:
            return tokens, error
        return tokens, None

    def is_free(self) -> bool:
        pool = self.verifier.kv.pool
        return pool.num_free == pool.num_blocks


@asynccontextmanager
async def timed_service(folder: Path, **limits: Any) -> AsyncIterator[TimedService]:
    write_tiny_tokenizer(folder, vocab_size=VOCAB_SIZE, eos=None)
    settings = load_settings({"target": folder, "draft_method": "ngram"})
    service = InferenceService(settings, Tokenizer.load(folder))
    verifier = FakeVerifier(num_blocks=CONTEXT, max_model_len=CONTEXT)
    verifier.hold = lambda: asyncio.sleep(ROUND_S)
    loop = asyncio.get_running_loop()
    limits = {"max_model_len": CONTEXT, "max_batch_size": 1} | limits
    async with Pipeline(SchedulerLimits(**limits), verifier, FakeDrafter(), clock=loop.time) as pipeline:
        await service.open(pipeline)
        verifier.commands.clear()
        yield TimedService(service, pipeline, verifier)
