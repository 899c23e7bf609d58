"""A request whose content kills the verifier, whichever process it is."""

from __future__ import annotations

import asyncio
import signal

import pytest

from minedraft import AsyncClient
from minedraft.errors import ReplaysExhausted
from tests.fakes.workers import VOCAB_SIZE, continuation
from tests.integration.launch.launched import Launched, greedy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NEIGHBOURS = [[n, n + 1, 9] for n in range(5)]
NUM_NEW = 150


def test_a_request_that_kills_every_verifier_ends_and_its_neighbours_go_on(start, tmp_path):
    launched = start("--mode", "minedraft", "--max-batch-size", "4", "--max-waiting", "16")
    harmless = {token for prompt in NEIGHBOURS for token in (*prompt, *continuation(prompt, NUM_NEW))}
    poison = max({*range(VOCAB_SIZE)} - harmless, default=None)
    assert poison is not None, "a token of no neighbour"
    (tmp_path / "model" / "poison").write_text(str(poison))
    asyncio.run(ask(launched, poison))
    code, said = launched.end(signal.SIGTERM)
    assert code == 0
    assert said.count("verifier: killed by SIGKILL") == 3, "one more than max_replays"


async def ask(launched: Launched, poison: int) -> None:
    async with AsyncClient(launched.address, timeout_s=90) as client:

        async def neighbour(prompt: list[int]) -> tuple[int, ...]:
            return (await client.complete(prompt, greedy(NUM_NEW))).token_ids

        neighbours = [asyncio.create_task(neighbour(prompt)) for prompt in NEIGHBOURS]
        with pytest.raises(ReplaysExhausted, match="the last time this one alone") as caught:
            await client.complete([3, poison, 4], greedy(8))
        assert caught.value.retry_after_s
        for prompt, answer in zip(NEIGHBOURS, await asyncio.gather(*neighbours), strict=True):
            assert list(answer) == continuation(prompt, NUM_NEW)
        faults = (await client.status()).faults
        assert faults["verifier_dead"] == 3
        assert faults["request_replays_exhausted"] == 1
