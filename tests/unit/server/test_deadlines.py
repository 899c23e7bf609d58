"""A call that fails from outside (deadline, abort, drain) ends at once, after the tokens that it has so far."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from minedraft.errors import DeadlineExceeded, Draining, RequestAborted
from minedraft.prompts import TextPrompt, TokenPrompt
from minedraft.sim.virtual_time import run_virtual
from tests.fakes.timed_service import PROMPT, ROUND_S, TimedService, timed_service
from tests.fakes.workers import continuation


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[TimedService], Coroutine[Any, Any, None]]], None]:
    def run(test: Callable[[TimedService], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with timed_service(tmp_path) as here:
                await test(here)

        run_virtual(main())

    return run


def test_a_deadline_while_running_ends_the_answer_after_its_tokens_and_frees_the_kv_within_a_round(run) -> None:
    async def test(here: TimedService) -> None:
        tokens, error = await here.answer(2000, timeout_s=0.5)
        assert isinstance(error, DeadlineExceeded)
        assert len(tokens) > 20
        assert tokens == continuation(PROMPT, len(tokens))
        assert f"after {len(tokens)} tokens" in str(error)
        num_rounds = len(here.verifier.commands)
        await asyncio.sleep(3 * ROUND_S)
        assert here.is_free()
        assert len(here.verifier.commands) <= num_rounds + 1, "the round that was under way is the last"

    run(test)


def test_a_deadline_in_the_queue_ends_the_request_before_it_is_ever_scheduled(run) -> None:
    async def test(here: TimedService) -> None:
        running = [asyncio.create_task(here.answer(2000)) for _ in range(2)]
        await asyncio.sleep(5 * ROUND_S)
        tokens, error = await here.answer(5, timeout_s=0.1, prompt=TokenPrompt((9, 9, 9, 9)))
        assert isinstance(error, DeadlineExceeded)
        assert not tokens
        sent = [span.tokens[:4] for command in here.verifier.commands for span in command.spans]
        assert (9, 9, 9, 9) not in sent
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run(test)


def test_a_deadline_of_nothing_and_one_while_a_prompt_is_tokenised_are_kept(run, monkeypatch) -> None:
    async def test(here: TimedService) -> None:
        _, error = await here.answer(5, timeout_s=0.0)
        assert isinstance(error, DeadlineExceeded)
        waiting = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(here.service._intake._prompts, "encode", lambda *args: waiting)
        _, error = await here.answer(5, timeout_s=0.5, prompt=TextPrompt("x"))
        assert isinstance(error, DeadlineExceeded)
        assert waiting.cancelled(), "nobody tokenises for it any more"
        assert not here.service._live

    run(test)


def test_an_abort_while_a_prompt_is_tokenised_ends_the_call_at_once(run, monkeypatch) -> None:
    async def test(here: TimedService) -> None:
        waiting = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(here.service._intake._prompts, "encode", lambda *args: waiting)
        call = asyncio.create_task(here.answer(5, request_id="mine"))
        await asyncio.sleep(0.1)
        assert here.service.abort("mine")
        assert isinstance((await call)[1], RequestAborted)

    run(test)


def test_all_samples_and_held_back_text_come_before_the_error(run) -> None:
    async def test(here: TimedService) -> None:
        sampling = {"n": 2, "stop": ("a stop string that never comes " * 3,)}
        tokens, error = await here.answer(2000, timeout_s=0.5, sampling=sampling)
        assert isinstance(error, DeadlineExceeded)
        assert f"after {len(tokens)} tokens" in str(error)

    run(test)


def test_a_drain_that_takes_too_long_gives_what_there_is_and_says_so(run) -> None:
    async def test(here: TimedService) -> None:
        live = asyncio.create_task(here.answer(3000))
        await asyncio.sleep(20 * ROUND_S)
        await here.service.drain(0.2)
        tokens, error = await live
        assert isinstance(error, Draining)
        assert error.retry_after_s is not None
        assert len(tokens) > 20
        assert tokens == continuation(PROMPT, len(tokens))
        await asyncio.sleep(3 * ROUND_S)
        assert here.is_free()

    run(test)
