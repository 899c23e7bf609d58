"""The faults that a run makes: each is a small program on the processes of the service, or on its clients."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment
from scripts.lib.chaos.crowd import HERE
from scripts.lib.chaos.relay import Relay
from scripts.lib.chaos.service import Processes
from scripts.lib.chaos.tally import Excuses

_CROWD = 16
_CROWD_S = 60.0
_LONG_STOP_S = 60.0
_BUDGET_WINDOW_S = 310.0  # the launcher counts ends within 300 s


EVERY_ROLE = ("drafter", "verifier", "scheduler", "crowd", "relay")


class NotNow(Exception):
    """The fault cannot be made at present: the process is not there."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        name: what happens to what.
        make: makes it and returns when it is over, not when the service has recovered.
        weight: how often it is chosen, against the others.
        touches: the roles that it is about: no other fault of theirs is made before they are back.
        ends: those whose process it ends: each has a budget of restarts.
    """

    name: str
    make: Callable[[], Awaitable[None]]
    weight: int
    touches: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


@dataclass(slots=True)
class Budget:
    """Ends of processes so far: no more are made within a window than the launcher forgives."""

    per_window: int = 4
    ends: dict[str, list[float]] = field(default_factory=dict)

    def allows(self, kind: Kind) -> bool:
        since_s = time.monotonic() - _BUDGET_WINDOW_S
        return all(sum(end_s > since_s for end_s in self.ends.get(role, ())) < self.per_window for role in kind.ends)

    def spend(self, kind: Kind) -> None:
        for role in kind.ends:
            self.ends.setdefault(role, []).append(time.monotonic())


class FaultMaker:
    """Makes the faults on one service.

    Args:
        address: of the service. relay: between some of the clients and it. excuses: told when streams may break.
    """

    def __init__(self, processes: Processes, address: str, relay: Relay, excuses: Excuses, rng: random.Random) -> None:
        self._processes = processes
        self._address = address
        self._relay = relay
        self._excuses = excuses
        self._rng = rng

    def kinds(self, *, has_drafter: bool, restarts_scheduler: bool) -> list[Kind]:
        """Return the kinds of faults that this service can meet."""
        workers = [role for role in ("drafter", "verifier") if has_drafter or role == "verifier"]
        kinds = [kind for role in workers for kind in self._of_worker(role)]
        if has_drafter:
            kinds.append(Kind("both workers killed", lambda: self._kill(*workers), 1, tuple(workers), tuple(workers)))
        if restarts_scheduler:
            kinds.append(Kind("scheduler killed", self._kill_scheduler, 2, EVERY_ROLE, ("scheduler",)))
        return [
            *kinds,
            Kind("scheduler stopped for a moment", lambda: self._stop_a_moment("scheduler"), 3, ("scheduler",)),
            Kind("client with 16 streams killed", self._kill_crowd, 3, ("crowd",)),
            Kind("client connections cut", self._cut, 4, ("relay",)),
        ]

    def _of_worker(self, role: str) -> Sequence[Kind]:
        return (
            Kind(f"{role} killed", lambda: self._kill(role), 5, (role,), (role,)),
            Kind(f"{role} stopped for a moment", lambda: self._stop_a_moment(role), 4, (role,)),
            Kind(f"{role} stopped for good", lambda: self._stop_for_good(role), 1, (role,), (role,)),
        )

    def _find(self, role: str) -> psutil.Process:
        process = self._processes.find(role)
        if process is None:
            raise NotNow(f"there is no {role}")
        return process

    async def _kill(self, *roles: str) -> None:
        for process in [self._find(role) for role in roles]:
            process.kill()

    async def _stop_a_moment(self, role: str) -> None:
        process = self._find(role)
        process.suspend()
        try:
            await asyncio.sleep(self._rng.uniform(0.05, 1.5))
        finally:
            _resume(process)

    async def _stop_for_good(self, role: str) -> None:
        """Stop a process and let it be found: it is killed, or its link given up. Later it may go on."""
        process = self._find(role)
        process.suspend()
        try:
            for _ in range(int(_LONG_STOP_S / 0.1)):
                await asyncio.sleep(0.1)
                if not _is_stopped(process):
                    return
        finally:
            _resume(process)

    async def _kill_scheduler(self) -> None:
        process = self._find("scheduler")
        self._excuses.begin()
        try:
            process.kill()
            for _ in range(int(_LONG_STOP_S / 0.1)):
                await asyncio.sleep(0.1)
                new = self._processes.find("scheduler")
                if new is not None and new.pid != process.pid:
                    return
        finally:
            self._excuses.end()

    async def _kill_crowd(self) -> None:
        has_begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def read(line: str) -> None:
            if line == HERE:
                loop.call_soon_threadsafe(has_begun.set)

        command = child_command("scripts.lib.chaos.crowd", self._address, str(_CROWD))
        crowd = WatchedProcess(command, read, child_environment())
        crowd.start()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(has_begun.wait(), _CROWD_S)
        finally:
            await crowd.stop_async()  # SIGKILL, with no signal before

    async def _cut(self) -> None:
        self._excuses.begin()
        try:
            self._relay.cut()
            await asyncio.sleep(0.5)
        finally:
            self._excuses.end()


def _resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False
