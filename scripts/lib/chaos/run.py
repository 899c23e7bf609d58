"""One run: clients, faults and watchers on one service, for a given time; then the checks."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minedraft import AsyncClient
from minedraft.address import Address
from scripts.lib.chaos.clients import RandomClient
from scripts.lib.chaos.faults import Budget, FaultMaker, Kind, NotNow
from scripts.lib.chaos.growth import Growth
from scripts.lib.chaos.relay import Relay
from scripts.lib.chaos.requests import Asked, learn
from scripts.lib.chaos.service import Processes, files_in, shared_memory
from scripts.lib.chaos.tally import Excuses, Tally
from scripts.lib.chaos.watch import NotBack, Watch

_IDLE_S = 30.0
_PROGRESS_S = 10.0
_RELAYED_SHARE = 4  # every fourth client is behind the relay
_MORE_FDS = 4  # connections of the scheduler that have just been closed

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        seconds: of load. num_clients: that send it. fault_every_s: mean pause between two faults; 0 for none.
            restarts_scheduler: also kill the scheduler. max_len: tokens of a request.
            patience_s: how long a recovery may take, and a client get nothing.
    """

    seconds: float
    num_clients: int
    fault_every_s: float
    restarts_scheduler: bool
    max_len: int
    seed: int
    patience_s: float = 120.0


@dataclass(slots=True)
class Result:
    """What came of it. Times are in seconds, by kind of fault."""

    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    back_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    pause_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    leaked: list[str] = field(default_factory=list)
    broken: str = ""
    growth: dict[str, dict[str, object]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        return sum(len(times) for times in self.back_s.values())

    @property
    def is_good(self) -> bool:
        return not (self.tally.wrong or self.tally.lost or self.leaked or self.broken)


class Run:
    """Runs a plan on a service that accepts requests.

    Args:
        folder: where the service keeps its files; None if that is not known. say: takes a line of progress.
    """

    def __init__(self, plan: Plan, address: str, processes: Processes, folder: Path | None, say: Say) -> None:
        self.result = Result()
        self._plan = plan
        self._address = address
        self._processes = processes
        self._folder = folder
        self._say = say
        self._rng = random.Random(plan.seed)
        self._excuses = Excuses()

    async def run(self, work: Path, stop: asyncio.Event) -> Result:
        """Learn the answers, put load and faults on the service until the time is over or `stop` is set, and check
        what is left. `work`: a folder for a socket."""
        plan, result = self._plan, self.result
        self._say(f"asking for the answers of an undisturbed run (seed {plan.seed})")
        pool = await learn(self._address, self._rng, plan.max_len)
        to = Address.parse(self._address, "server").path
        assert to is not None, "checked before"
        async with AsyncExitStack() as stack:
            relay = await stack.enter_async_context(Relay(work / "relay.sock", to))
            watch = Watch(await stack.enter_async_context(AsyncClient(self._address, timeout_s=5.0)), plan.patience_s)
            await watch.idle(_IDLE_S)
            before = self._held()
            growth = Growth(self._processes)
            async with _beside(growth.run()), _beside(self._report_progress(watch)):
                started_s = time.monotonic()
                async with self._load(pool, relay.address):
                    maker = FaultMaker(self._processes, self._address, relay, self._excuses, self._rng)
                    await self._disturb(maker, watch, pool, stop)
                result.seconds = time.monotonic() - started_s
                result.leaked += await watch.idle(_IDLE_S)
            growth.look()
            result.growth = growth.summary()
            if watch.status is not None:
                result.counts = dict(watch.status.faults)
            await self._check_held(before)
        return result

    @asynccontextmanager
    async def _load(self, pool: Sequence[Asked], relayed: str) -> AsyncIterator[None]:
        """Send requests while the block runs, and let those under way end."""
        is_over = asyncio.Event()
        async with AsyncExitStack() as stack:
            tasks = []
            for number in range(self._plan.num_clients):
                address = relayed if number % _RELAYED_SHARE == 0 else self._address
                client = await stack.enter_async_context(AsyncClient(address))
                rng = random.Random(f"{self._plan.seed} {number}")
                one = RandomClient(client, pool, self.result.tally, self._excuses, rng, self._plan.patience_s)
                tasks.append(asyncio.create_task(one.run(is_over, 0.5)))
            try:
                yield
            finally:
                is_over.set()
                _, hung = await asyncio.wait(tasks, timeout=2 * self._plan.patience_s)
                for task in hung:
                    task.cancel()
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        self.result.tally.blame(f"a client ended with {outcome!r}", is_lost=True)

    async def _disturb(self, maker: FaultMaker, watch: Watch, pool: Sequence[Asked], stop: asyncio.Event) -> None:
        """Make faults until the time is over, several at a time if they are not about the same process."""
        plan, end_s = self._plan, time.monotonic() + self._plan.seconds
        has_drafter = any(worker.role == "drafter" for worker in watch.status.workers) if watch.status else False
        kinds = maker.kinds(has_drafter=has_drafter, restarts_scheduler=plan.restarts_scheduler)
        budget, busy = Budget(), dict[asyncio.Task[None], Kind]()
        is_broken = asyncio.Event()
        while not (stop.is_set() or is_broken.is_set()) and (left_s := end_s - time.monotonic()) > 0:
            every_s = plan.fault_every_s or 2 * left_s
            await _wait_for(stop, is_broken, seconds=min(self._rng.expovariate(1 / every_s), left_s, 3 * every_s))
            touched = {role for kind in busy.values() for role in kind.touches}
            allowed = [kind for kind in kinds if budget.allows(kind) and touched.isdisjoint(kind.touches)]
            if stop.is_set() or not plan.fault_every_s or time.monotonic() >= end_s or not allowed:
                continue
            kind = self._rng.choices(allowed, [kind.weight for kind in allowed])[0]
            budget.spend(kind)
            task = asyncio.create_task(self._make(kind, watch, self._rng.choice(pool), is_broken))
            busy[task] = kind
            task.add_done_callback(busy.pop)
        await asyncio.gather(*busy)

    async def _make(self, kind: Kind, watch: Watch, asked: Asked, is_broken: asyncio.Event) -> None:
        """Make one fault, and measure how long it is felt."""
        before = await watch.epochs()
        began_s = time.monotonic()
        probe = asyncio.create_task(watch.probe(asked))
        try:
            await kind.make()
            back_s = await watch.back(began_s, before, kind.touches, kind.ends)
            self.result.pause_s[kind.name].append(await probe)
            self.result.back_s[kind.name].append(back_s)
            self._say(f"fault {self.result.num_faults}: {kind.name}; back after {back_s:.1f} s")
        except NotNow as why:
            self._say(f"{kind.name}: {why}")
        except NotBack as why:
            self.result.broken = f"{kind.name}: {why}"
            self._say(f"broken: {self.result.broken}")
            is_broken.set()
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    async def _report_progress(self, watch: Watch) -> None:
        started_s = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_S)
            state = watch.status.state if watch.status is not None else "no answer"
            elapsed_s = time.monotonic() - started_s
            self._say(f"{elapsed_s:.0f} s, {state}: {self.result.tally.line()}; {self.result.num_faults} faults")

    def _held(self) -> tuple[int, int, set[str], set[str]]:
        scheduler = self._processes.find("scheduler")
        num_fds = scheduler.num_fds() if scheduler is not None else 0
        return self._processes.count(), num_fds, files_in(self._folder), shared_memory()

    async def _check_held(self, before: tuple[int, int, set[str], set[str]]) -> None:
        """Compare processes, descriptors and files with those before the load."""
        if not self._processes.is_alive():
            self.result.broken = self.result.broken or "the launcher has ended"
            return
        deadline_s = time.monotonic() + _IDLE_S
        while True:  # connections that clients have closed are noticed a moment later
            now = self._held()
            more_fds = max(now[1] - before[1] - _MORE_FDS, 0)
            new = sorted((now[2] - before[2]) | (now[3] - before[3]))
            if now[0] == before[0] and not more_fds and not new:
                return
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(0.2)
        self.result.leaked += [f"{now[0] - before[0]} processes"] * (now[0] != before[0])
        self.result.leaked += [f"{more_fds} descriptors of the scheduler"] * bool(more_fds) + new


async def _wait_for(*events: asyncio.Event, seconds: float) -> None:
    """Return when one of the events is set, or after some seconds."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
