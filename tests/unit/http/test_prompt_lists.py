"""A list of prompts is fed to the service by and by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from minedraft.http.calls import Answers
from minedraft.http.wire.forms import Asked, CompletionForm
from minedraft.output import Output
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason


class _Service:
    """Answers with the prompt's own number, and counts who waits for an answer."""

    def __init__(self) -> None:
        self.num_live = self.most_live = 0

    async def generate(self, prompt: list[int], params: SamplingParams, request_id: str) -> AsyncIterator[Output]:
        self.num_live += params.n
        self.most_live = max(self.most_live, self.num_live)
        await asyncio.sleep(0)
        for index in range(params.n):
            yield Output(f"{prompt[0]}", (1,), FinishReason.LENGTH, index=index, request_id=request_id)
        self.num_live -= params.n


@pytest.mark.parametrize(("samples", "most"), [(1, 64), (3, 63), (64, 64)])
async def test_a_long_list_does_not_fill_the_services_queue(samples: int, most: int) -> None:
    service, tokenizer = _Service(), cast(Any, None)
    prompts = [[number] for number in range(300)]
    asked = Asked("cmpl-1", "tiny", "", prompts, SamplingParams(n=samples))
    answers = Answers(cast(Any, service), tokenizer)
    content = await answers.whole(CompletionForm(tokenizer), asked)
    assert [choice["text"] for choice in content["choices"]] == [str(i) for i in range(300) for _ in range(samples)]
    assert service.most_live == most
