"""When the requests of a run are sent, and what is recorded of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.metrics.record import AnswerRecord, RequestRecord
from minedraft.bench.prompts import as_prompt
from minedraft.client import AsyncClient
from minedraft.errors import ConfigError, MineDraftError
from minedraft.output import Output
from minedraft.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Traffic:
    """How the requests of a run are sent.

    Attributes:
        rate: mean requests per second; None: all at once.
        burstiness: shape of the gamma distribution of the times between requests, as in vLLM's benchmark: 1 is a
            Poisson process, less comes in bursts, more comes evenly.
        concurrency: most requests open at a time; None: no limit. With all at once, this many are always open.
        seed: of the times.
        has_template: prompts are messages for the model's chat template.
        has_file_lens: answers have as many tokens as the dataset says.

    Raises:
        ConfigError: a value out of range.
    """

    rate: float | None = None
    burstiness: float = 1.0
    concurrency: int | None = None
    seed: int = 0
    has_template: bool = True
    has_file_lens: bool = False

    def __post_init__(self) -> None:
        for name in ("rate", "burstiness", "concurrency"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(name, value, "must be above 0 and finite")

    def times_s(self, num: int) -> list[float]:
        """Return when each of `num` requests is to be sent, in seconds; the first one at 0."""
        if self.rate is None:
            return [0.0] * num
        rng, scale_s = random.Random(self.seed), 1 / (self.rate * self.burstiness)
        times = [0.0]
        while len(times) < num:
            times.append(times[-1] + rng.gammavariate(self.burstiness, scale_s))
        return times[:num]


async def send_all(
    client: AsyncClient, prompts: Sequence[BenchPrompt], sampling: SamplingParams, traffic: Traffic
) -> list[RequestRecord]:
    """Send a request for each prompt and wait for all answers. A request that fails is recorded as failed."""
    gate = asyncio.Semaphore(traffic.concurrency) if traffic.concurrency is not None else None
    start_s = time.monotonic()

    async def send(prompt: BenchPrompt, at_s: float) -> RequestRecord:
        await asyncio.sleep(start_s + at_s - time.monotonic())
        async with AsyncExitStack() as stack:
            if gate is not None:
                await stack.enter_async_context(gate)
            return await _record(client, prompt, _params_of(prompt, sampling, traffic), traffic, start_s)

    times_s = traffic.times_s(len(prompts))
    return await asyncio.gather(*(send(prompt, at_s) for prompt, at_s in zip(prompts, times_s, strict=True)))


def _params_of(prompt: BenchPrompt, sampling: SamplingParams, traffic: Traffic) -> SamplingParams:
    if not traffic.has_file_lens:
        return sampling
    if prompt.output_len is None:
        limit = 'must have "output_tokens" for each prompt, to take the lengths from it'
        raise ConfigError("dataset", prompt.text[:40], limit)
    return replace(sampling, max_new_tokens=prompt.output_len, ignore_eos=True)


async def _record(
    client: AsyncClient, prompt: BenchPrompt, params: SamplingParams, traffic: Traffic, start_s: float
) -> RequestRecord:
    pieces: dict[int, list[tuple[float, int]]] = defaultdict(list)
    lasts: dict[int, Output] = {}
    sent_s, error_text = time.monotonic() - start_s, ""
    try:
        stream = client.generate(as_prompt(prompt, has_template=traffic.has_template), params)
        async with aclosing(cast(Any, stream)):
            async for output in stream:
                if output.token_ids:
                    pieces[output.index].append((time.monotonic() - start_s, len(output.token_ids)))
                if output.usage is not None:
                    lasts[output.index] = output
    except MineDraftError as error:
        error_text = f"{error.reason}: {error}"
    end_s = time.monotonic() - start_s
    usages = {index: last.usage for index, last in lasts.items() if last.usage is not None}
    answers = tuple(
        AnswerRecord(tuple(pieces[index]), usages[index].rounds if index in usages else 0) for index in sorted(pieces)
    )
    prompt_tokens = max((usage.prompt_tokens for usage in usages.values()), default=0)
    return RequestRecord(sent_s, end_s, prompt_tokens, answers, prompt.kind, error_text)
