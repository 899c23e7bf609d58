"""When the output of a call is sent: with the round that brings it, not by a timer between two rounds."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from minedraft.server.live_call import LiveCall
from minedraft.sim.virtual_time import run_virtual

MS = 1e-3


def sent_ms(round_ms: int, num_rounds: int, *, interval_s: float = 0.0, has_end: bool = True) -> list[int]:
    """Return when a call that gets tokens every `round_ms`, from 0 ms on, and its end with the last of them, sends."""

    async def main() -> list[int]:
        loop, times = asyncio.get_running_loop(), list[int]()
        call = LiveCall(cast(Any, None), interval_s=interval_s)

        async def send() -> None:
            while True:
                await call.wait()
                times.append(round(loop.time() / MS))

        sending = asyncio.create_task(send())
        for number in range(num_rounds):
            call.notify(has_end and number == num_rounds - 1)
            await asyncio.sleep(round_ms * MS)
        await asyncio.sleep(1.0)
        sending.cancel()
        call.close()
        return times

    return run_virtual(main())


@pytest.mark.parametrize(
    ("round_ms", "interval_s", "wanted"),
    [
        (9, 0.0, [0, 27, 54]),
        (8, 0.0, [0, 24, 48, 56]),  # the end does not wait
        (11, 0.0, [0, 22, 44, 66, 77]),
        (50, 0.0, [0, 50, 100, 150, 200, 250, 300, 350]),
        (11, 0.040, [0, 44, 77]),
    ],
)
def test_tokens_are_sent_with_the_first_round_after_the_interval(
    round_ms: int, interval_s: float, wanted: list[int]
) -> None:
    num_rounds = 7 if round_ms == 9 else 8
    assert sent_ms(round_ms, num_rounds, interval_s=interval_s) == wanted


def test_tokens_that_no_round_takes_along_wait_half_an_interval_more() -> None:
    assert sent_ms(9, 2, has_end=False) == [0, 30]
    assert sent_ms(13, 2, interval_s=0.1, has_end=False) == [0, 150]


def test_the_end_takes_along_what_waits() -> None:
    assert sent_ms(5, 3) == [0, 10]
