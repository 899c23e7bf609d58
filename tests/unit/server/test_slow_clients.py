"""A client that does not read is paused: others get its place, and its answer is complete when it reads again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from minedraft import SamplingParams
from minedraft.prompts import GenerateCall, TokenPrompt
from minedraft.sim.virtual_time import run_virtual
from minedraft.types import Mode
from tests.fakes.timed_service import PROMPT, ROUND_S, timed_service
from tests.fakes.workers import continuation

MOST_UNSENT = 64
LONG = GenerateCall(TokenPrompt(tuple(PROMPT)), SamplingParams(max_new_tokens=400))


@pytest.fixture(autouse=True)
def little_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minedraft.server.answers.answer.MAX_UNSENT_TOKENS", MOST_UNSENT)


def test_what_a_client_does_not_read_costs_no_round_and_no_seat(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            timed_service(tmp_path, mode=Mode.AR) as here,
            aclosing(here.service.generate(LONG, "slow")) as stream,
        ):
            tokens = list((await anext(stream)).token_ids)
            await asyncio.sleep(200 * ROUND_S)
            request = next(iter(here.pipeline.scheduler.requests.values()))
            assert request.is_paused
            assert request.batch is None
            assert MOST_UNSENT <= request.output_len <= MOST_UNSENT + 8
            num_blocks = here.pipeline.scheduler.verifier_kv.pool.num_owned(request.id)
            assert num_blocks >= request.output_len // 4, "its KV is kept"
            answer, error = await here.answer(50)
            assert error is None
            assert answer == continuation(PROMPT, 50), "the one seat is free for another"
            async for output in stream:
                tokens += output.token_ids
            assert tokens == continuation(PROMPT, 400)

    run_virtual(main())


def test_a_client_that_reads_slowly_in_every_mode_gets_the_same_answer(tmp_path: Path) -> None:
    async def main(mode: Mode, folder: Path) -> None:
        async with timed_service(folder, mode=mode, max_batch_size=2) as here:
            others = [asyncio.create_task(here.answer(300)) for _ in range(4)]
            tokens: list[int] = []
            async with aclosing(here.service.generate(LONG, "slow")) as stream:
                async for output in stream:
                    tokens += output.token_ids
                    await asyncio.sleep(len(output.token_ids) * 3 * ROUND_S)
            assert tokens == continuation(PROMPT, 400)
            assert [answer for answer, _ in await asyncio.gather(*others)] == [continuation(PROMPT, 300)] * 4
            assert here.is_free()

    for mode in Mode:
        run_virtual(main(mode, tmp_path / mode.value))
