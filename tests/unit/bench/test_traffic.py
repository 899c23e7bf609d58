"""When requests are sent, and what is recorded of them, with a client that answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any, cast

import pytest

from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.traffic import Traffic, send_all
from minedraft.client import AsyncClient
from minedraft.errors import ConfigError, Overloaded
from minedraft.output import Output, RequestUsage
from minedraft.sampling_params import SamplingParams

PROMPTS = [BenchPrompt("chat", f"prompt {number}", output_len=number + 1) for number in range(6)]


class InstantClient:
    """Answers with one token and then two, of each sample; refuses a prompt with "3"."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, SamplingParams]] = []
        self.num_open = self.most_open = 0

    async def generate(self, prompt: Any, params: SamplingParams) -> AsyncIterator[Output]:
        self.calls.append((prompt, params))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            await asyncio.sleep(0)
            if "3" in str(prompt):
                raise Overloaded("full")
            for index in range(params.n):
                yield Output("a", (1,), index=index)
                await asyncio.sleep(0)
                usage = RequestUsage(7, 3, 2, 4, 1, 0.0, 0.0, 0.0)
                yield Output("bc", (2, 3), index=index, usage=usage)
        finally:
            self.num_open -= 1


async def send(traffic: Traffic, **params: Any) -> tuple[InstantClient, list[Any]]:
    client = InstantClient()
    sampling = SamplingParams(max_new_tokens=8, **params)
    return client, list(await send_all(cast(AsyncClient, client), PROMPTS, sampling, traffic))


async def test_a_burst_is_open_all_at_once() -> None:
    client, records = await send(Traffic())
    assert client.most_open == 6
    assert [record.error for record in records] == ["", "", "", "OVERLOADED: full", "", ""]
    assert [record.num_tokens for record in records] == [3, 3, 3, 0, 3, 3]
    first = records[0]
    assert (first.prompt_tokens, first.kind, first.answers[0].rounds) == (7, "chat", 2)
    assert [num for _, num in first.answers[0].pieces] == [1, 2]
    assert 0 <= first.sent_s <= first.first_token_s <= first.end_s


async def test_no_more_are_open_than_the_concurrency() -> None:
    client, records = await send(Traffic(concurrency=2))
    assert client.most_open == 2
    assert len(records) == 6


async def test_each_sample_is_an_answer() -> None:
    _, records = await send(Traffic(), n=2)
    assert [len(record.answers) for record in records] == [2, 2, 2, 0, 2, 2]


async def test_the_lengths_of_the_file_are_asked_for() -> None:
    client, _ = await send(Traffic(has_file_lens=True))
    assert [params.max_new_tokens for _, params in client.calls] == [1, 2, 3, 4, 5, 6]
    assert all(params.ignore_eos for _, params in client.calls)
    nothing = [BenchPrompt("-", "x")]
    with pytest.raises(ConfigError, match='must have "output_tokens" for each prompt'):
        await send_all(cast(AsyncClient, client), nothing, SamplingParams(), Traffic(has_file_lens=True))


async def test_the_text_alone_is_sent_without_a_template() -> None:
    client, _ = await send(Traffic(has_template=False))
    assert client.calls[0][0] == "prompt 0"


def test_all_are_sent_at_the_start_without_a_rate() -> None:
    assert Traffic().times_s(3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 16.0])
def test_times_between_requests_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness(burstiness: float) -> None:
    times = Traffic(rate=4.0, burstiness=burstiness, seed=3).times_s(20_001)
    gaps = [after - before for before, after in pairwise(times)]
    assert times[0] == 0.0
    assert fmean(gaps) == pytest.approx(1 / 4, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)  # of a gamma distribution


def test_the_seed_decides_the_times() -> None:
    assert Traffic(rate=1.0).times_s(5) == Traffic(rate=1.0).times_s(5) != Traffic(rate=1.0, seed=1).times_s(5)


@pytest.mark.parametrize("field", ["rate", "burstiness", "concurrency"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_value_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*must be above 0"):
        Traffic(**{field: value})
