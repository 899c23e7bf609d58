"""Counters of a server read while it answers."""

from __future__ import annotations

import asyncio

import httpx2

from scripts.lib.peers.engines.http_engine import HttpEngine
from scripts.lib.peers.engines.vllm_cpu import Completions
from scripts.lib.vllm.counters import Counters
from scripts.lib.vllm.watching import Reading, counted_between, watched

STEPS = "minedraft_vllm_steps_total"


def reading(asked_s: float, told_s: float, steps: float) -> Reading:
    return Reading(asked_s, told_s, Counters({STEPS: steps}))


def test_only_what_was_counted_wholly_inside_the_time_is_told() -> None:
    readings = [
        reading(0.0, 0.1, 1),
        reading(0.9, 1.1, 3),
        reading(1.2, 1.3, 5),
        reading(1.3, 1.4, 6),
        reading(1.5, 1.6, 8),
        reading(1.8, 1.9, 11),
        reading(2, 3, 20),
    ]
    inside = counted_between(readings, 1.0, 2.5)
    assert inside is not None
    assert inside[STEPS] == 11 - 8, (
        "the second reading may be from before, the last one from after that time, and two steps may be told late"
    )


def test_too_short_a_time_tells_nothing() -> None:
    assert counted_between([reading(0.0, 0.1, 1), reading(1.2, 1.3, 5), reading(1.4, 1.5, 7)], 1.0, 2.0) is None
    assert counted_between([reading(0.0, 0.1, 1)], 1.0, 2.0) is None
    silent = [reading(1.2, 1.3, 5), reading(1.4, 1.5, 7), reading(1.6, 1.7, 7)]
    assert counted_between(silent, 1.0, 2.0) is None, "no step was told of after the first ones"


async def test_counters_are_read_before_while_and_after(monkeypatch) -> None:
    monkeypatch.setattr("scripts.lib.vllm.watching._EVERY_S", 0.0)
    asked = []
    asked_often = asyncio.Event()

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        if len(asked) == 4:
            asked_often.set()
        return httpx2.Response(200, text=f"# TYPE {STEPS} counter\n{STEPS} {len(asked)}\n")

    async with (
        httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://peer") as client,
        watched(HttpEngine("vllm", 0, client, Completions())) as readings,
    ):
        await asyncio.wait_for(asked_often.wait(), 10)
    assert set(asked) == {"/metrics"}
    told = [reading.counters[STEPS] for reading in readings]
    assert told == sorted(told)
    assert told[0] == 1
    assert told[-1] == len(asked)
