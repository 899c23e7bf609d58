"""Starts the service in one preset, puts the load on it for a while, and checks all that must hold."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import MineDraftError
from minedraft.output import ServiceStatus
from minedraft.types import Mode
from tests.stress.checks import (
    Answer,
    check_growth,
    check_idle,
    check_status,
    describe,
    describe_waiting,
    judge,
)
from tests.stress.load import Ask, Load, Phase, Way
from tests.stress.models import Pair
from tests.stress.presets import Preset
from tests.stress.service import Broken, Service, serving
from tests.stress.truth import Truth

_WATCH_S = 0.5
_PROGRESS_S = 2.0
_STATUS_TIMEOUT_S = 60.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """hang_s: how long one request may get nothing. stall_s: how long no round may end while requests live."""

    hang_s: float = 30.0
    stall_s: float = 10.0


@dataclass(slots=True)
class Outcome:
    """What came of one preset. `ends` counts requests by how they ended; `problem` is what is broken, and
    `problem_s` when it was seen, in seconds of load."""

    preset: Preset
    mode: Mode
    load_s: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    num_exact: int = 0  # whole answers that equal generate's
    num_tokens: int = 0
    status: ServiceStatus | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        return f"{self.preset.name}/{self.mode.value}"

    def line(self) -> str:
        ends = ", ".join(f"{n} {end}" for end, n in self.ends.most_common())
        status = self.status
        rates = f"; {status.preemptions} preemptions, VSR {status.vsr:.0%}" if status is not None else ""
        return f"{self.name}, {self.load_s:.0f} s: {ends or 'no answer yet'}; {self.num_exact} exact{rates}"


class Run:
    """The load on one service that is ready."""

    def __init__(
        self, service: Service, load: Load, truth: Truth, outcome: Outcome, patience: Patience, report: Report
    ) -> None:
        self._service = service
        self._load = load
        self._truth = truth
        self._outcome = outcome
        self._patience = patience
        self._report = report
        self._live: dict[int, tuple[Ask, Answer]] = {}

    async def drive(self, clients: Sequence[AsyncClient], seconds: float, least: int, stop: asyncio.Event) -> None:
        """Send phases until the time is over and `least` answers are exact, or until `stop` is set, while watching.

        Raises:
            Broken: an answer or the state of the service is not as it must be.
        """
        started_s = time.monotonic()
        try:
            async with _watched(self._watch(clients[0])):
                for phase in self._load.phases():
                    await self._run_phase(phase, clients, stop)
                    is_over = time.monotonic() - started_s >= seconds and self._outcome.num_exact >= least
                    if stop.is_set() or is_over:
                        return
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), phase.pause_s)
        finally:
            self._outcome.load_s = time.monotonic() - started_s

    async def _run_phase(self, phase: Phase, clients: Sequence[AsyncClient], stop: asyncio.Event) -> None:
        stopped = asyncio.create_task(stop.wait())
        asks = [asyncio.create_task(self._serve(clients[ask.number % len(clients)], ask)) for ask in phase.asks]
        tasks: set[asyncio.Task[Any]] = {stopped, *asks}
        try:
            while not stopped.done() and not all(task.done() for task in asks):
                await asyncio.wait({task for task in tasks if not task.done()}, return_when=asyncio.FIRST_COMPLETED)
                for task in asks:
                    if task.done():
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, client: AsyncClient, ask: Ask) -> None:
        """Send one request, take its answer as it says, and judge it."""
        await asyncio.sleep(ask.start_s)
        now_s = time.monotonic()
        answer = Answer(now_s, now_s)
        self._live[ask.number] = ask, answer
        try:
            await _take(client, ask, answer)
        except MineDraftError as error:
            answer.error = error
        except Exception as error:
            raise Broken(f"{ask}: an error of a foreign type: {type(error).__name__}: {error}") from error
        finally:
            del self._live[ask.number]
        end = judge(ask, answer, self._truth, self._outcome.preset)
        self._outcome.ends[end] += 1
        self._outcome.num_exact += end == "whole" and ask.known is not None
        self._outcome.num_tokens += sum(len(piece.token_ids) for piece in answer.pieces)

    async def _watch(self, client: AsyncClient) -> None:
        """Look at service and requests until something is wrong."""
        started_s = moved_s = reported_s = time.monotonic()
        steps = -1
        while True:
            await asyncio.sleep(_WATCH_S)
            self._service.check()
            self._outcome.status = status = await _status(client)
            check_status(status, self._outcome.mode)
            now_s = time.monotonic()
            self._outcome.load_s = now_s - started_s
            if status.steps != steps or status.num_running + status.num_waiting == 0:
                steps, moved_s = status.steps, now_s
            silent_s = max((now_s - answer.last_s for _, answer in self._live.values()), default=0.0)
            if now_s - moved_s > self._patience.stall_s or silent_s > self._patience.hang_s:
                what = f"no round has ended for {now_s - moved_s:.1f} s, a request got nothing for {silent_s:.1f} s"
                waiting = describe_waiting(list(self._live.values()), now_s)
                raise Broken(f"{what}\n{describe(status)}\n{waiting}")
            if now_s - reported_s >= _PROGRESS_S:
                reported_s = now_s
                self._report(f"{self._outcome.line()}; {len(self._live)} live, {status.tokens_per_s:.0f} tokens/s")


async def run_preset(
    preset: Preset,
    mode: Mode,
    pair: Pair,
    truth: Truth,
    folder: Path,
    *,
    seed: str,
    seconds: float,
    num_clients: int,
    patience: Patience,
    report: Report,
    stop: asyncio.Event,
    least: int = 0,
) -> Outcome:
    """Run one preset with a service of its own; what is broken is in the outcome.

    Args:
        folder: for the service's files; empty, and nobody else's.
        seed: decides the load.
        seconds: of load; start, last answers and stop take some more.
        report: takes a line of progress every two seconds.
        stop: ends the load early; the checks that follow are made all the same.
        least: the load lasts longer, if need be, until so many whole answers equal generate's.
    """
    outcome = Outcome(preset, mode)
    load = Load(f"{seed} {preset.name} {mode.value}", preset, truth, num_clients)
    try:
        async with serving(preset, mode, pair, folder) as service:
            run = Run(service, load, truth, outcome, patience, report)

            async def drive(clients: Sequence[AsyncClient]) -> None:
                await run.drive(clients, seconds, least, stop)

            await _run_load(service, drive, outcome, num_clients)
    except Broken as broken:
        outcome.problem = str(broken)
    return outcome


async def _run_load(
    service: Service, drive: Callable[[Sequence[AsyncClient]], Awaitable[None]], outcome: Outcome, num_clients: int
) -> None:
    async with AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(AsyncClient(service.address))
        await check_idle(watcher, outcome.mode)
        before = service.held()
        async with AsyncExitStack() as crowd:
            clients = [await crowd.enter_async_context(AsyncClient(service.address)) for _ in range(num_clients)]
            await drive(clients)
        gc.collect()  # errors refer to the calls they came from, and those keep their connections open
        await check_idle(watcher, outcome.mode)
        outcome.status = await _status(watcher)
        service.check()
        await check_growth(service, before)


@asynccontextmanager
async def _watched(watching: Any) -> AsyncIterator[None]:
    """Run the block beside `watching`, which only ends by an exception; the first exception of either is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watching)
            yield
            watcher.cancel()
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


async def _take(client: AsyncClient, ask: Ask, answer: Answer) -> None:
    timeout_s = ask.after if ask.way is Way.DEADLINE else None
    params = SamplingParams(**ask.params)
    stream = client.generate(ask.prompt.given, params, request_id=ask.request_id, timeout_s=timeout_s)
    reading = asyncio.create_task(_read(stream, ask, answer))
    try:
        if ask.way is Way.ABORT:
            await asyncio.sleep(ask.after)
            await client.abort(ask.request_id)
        elif ask.way is Way.CANCEL:
            await asyncio.wait({reading}, timeout=ask.after)
            answer.was_left = reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            return
        await reading
    finally:
        reading.cancel()


async def _read(stream: AsyncIterator[Any], ask: Ask, answer: Answer) -> None:
    num_most = ask.after if ask.way is Way.CLOSE else None
    async with aclosing(cast(Any, stream)):
        async for piece in stream:
            answer.pieces.append(piece)
            answer.last_s = time.monotonic()
            if num_most is not None and len(answer.pieces) >= num_most:
                answer.was_left = True
                return


async def _status(client: AsyncClient) -> ServiceStatus:
    """The status.

    Raises:
        Broken: it does not come.
    """
    try:
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            return await client.status()
    except TimeoutError:
        raise Broken(f"no status within {_STATUS_TIMEOUT_S:g} s") from None
