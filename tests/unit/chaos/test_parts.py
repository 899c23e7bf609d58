"""The parts of chaos and soak that judge: a run that finds nothing must have been able to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from minedraft import SamplingParams
from minedraft.errors import InternalError, MineDraftError, Overloaded, WorkerLost
from minedraft.output import Output
from minedraft.types import FinishReason
from scripts.lib.chaos.clients import RandomClient
from scripts.lib.chaos.faults import Budget, Kind
from scripts.lib.chaos.growth import slope_per_s
from scripts.lib.chaos.relay import Relay
from scripts.lib.chaos.report import lines, spread, to_json
from scripts.lib.chaos.requests import Asked
from scripts.lib.chaos.run import Plan, Result
from scripts.lib.chaos.tally import Excuses, Tally

TRUTH = tuple(range(96))


class FakeClient:
    """Answers with the truth; `change` and `error` spoil the answer."""

    def __init__(self, change: int | None = None, error: MineDraftError | None = None, is_cut: bool = False) -> None:
        self._change, self._error, self._is_cut = change, error, is_cut

    async def generate(self, prompt: object, params: SamplingParams, **_: object) -> AsyncIterator[Output]:
        tokens = list(TRUTH[: params.max_new_tokens])
        if self._change is not None:
            tokens[-1] = self._change
        if self._error is not None and not self._is_cut:
            raise self._error
        if self._is_cut:
            yield Output(token_ids=tuple(tokens[:1]))
            if self._error is not None:
                raise self._error
            return
        yield Output(token_ids=tuple(tokens), finish_reason=FinishReason.LENGTH)


class AlwaysWhole(random.Random):
    """Asks for the whole of an answer, each time."""

    def choices(self, population: Any, *args: Any, **kwargs: Any) -> Any:
        return [population[0]]


async def asked_once(client: FakeClient, excuses: Excuses | None = None) -> Tally:
    tally = Tally()
    pool = [Asked([1], SamplingParams(max_new_tokens=96), (TRUTH,))]
    random_client = RandomClient(client, pool, tally, excuses or Excuses(), AlwaysWhole(3))  # type: ignore[arg-type]
    await random_client._ask_once()
    return tally


async def test_a_right_answer_is_counted_as_answered() -> None:
    tally = await asked_once(FakeClient())
    assert (tally.sent, tally.answered, tally.wrong, tally.lost) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("client", "counts"),
    [
        (FakeClient(change=777), {"wrong": 1}),
        (FakeClient(is_cut=True), {"lost": 1}),
        (FakeClient(error=Overloaded("full", 0.01)), {"refused": 1}),
        (FakeClient(error=WorkerLost("gone"), is_cut=True), {"lost": 1}),
        (FakeClient(error=InternalError("a bug")), {"wrong": 1}),
    ],
    ids=["another token", "no end", "refused", "an error in the middle", "a bug"],
)
async def test_what_is_wrong_is_seen(client: FakeClient, counts: dict[str, int]) -> None:
    tally = await asked_once(client)
    assert {name: getattr(tally, name) for name in ("answered", "refused", "wrong", "lost")} == {
        "answered": 0, "refused": 0, "wrong": 0, "lost": 0
    } | counts  # fmt: skip


async def test_while_the_scheduler_is_gone_a_stream_may_break() -> None:
    excuses = Excuses()
    excuses.begin()
    tally = await asked_once(FakeClient(error=WorkerLost("gone"), is_cut=True), excuses)
    assert (tally.interrupted, tally.lost) == (1, 0)
    excuses.end()
    tally = await asked_once(FakeClient(error=WorkerLost("gone"), is_cut=True), excuses)
    assert (tally.interrupted, tally.lost) == (0, 1)


def test_no_more_workers_are_killed_than_the_launcher_forgives() -> None:
    budget, kind = Budget(per_window=2), Kind("both killed", asyncio.Event().wait, 1, (), ("drafter", "verifier"))  # type: ignore[arg-type]
    other = Kind("drafter killed", asyncio.Event().wait, 1, (), ("drafter",))  # type: ignore[arg-type]
    for _ in range(2):
        assert budget.allows(kind)
        budget.spend(kind)
    assert not budget.allows(kind)
    assert not budget.allows(other)


def test_a_slope_is_that_of_the_line() -> None:
    assert slope_per_s([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2)
    assert slope_per_s([0, 1], [5, 7]) == 0


def test_a_report_says_what_broke() -> None:
    result = Result()
    assert lines(result)[-1] == "all held"
    result.tally.blame("tokens", is_lost=False)
    result.back_s["drafter killed"] += [1.0, 3.0]
    assert lines(result)[-1] == "BROKEN"
    content = to_json(result, Plan(1, 1, 1, False, 1, 1), {})
    assert content["requests"]["wrong"] == 1
    assert content["faults"]["by_kind"]["drafter killed"]["back_s"] == {"p50": 2.0, "p99": 3.0, "max": 3.0}
    assert spread([]) == {}


async def test_a_relay_passes_bytes_on_until_it_cuts(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_unix_server(echo, str(tmp_path / "to"))
    async with server, Relay(tmp_path / "relay", tmp_path / "to") as relay:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "relay"))
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        relay.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
