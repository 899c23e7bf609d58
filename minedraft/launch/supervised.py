"""Keeps one process running: starts it, kills it if it hangs, and starts it again as the restart rules say."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from minedraft.launch.child import Child, OnLine
from minedraft.launch.notify_socket import NotifySocket
from minedraft.launch.ping_watch import PingWatch
from minedraft.launch.restart import ESSENTIAL, LOADING, GiveUp, ProcessEnd, RestartRules, next_action

_NO_PROGRAM = 127  # a shell's exit code for a missing program
_LOOKS_PER_LIMIT = 10
_MAX_HISTORY = 32

Report = Callable[[str], None]


class Supervised:
    """One process of the service, in all its incarnations.

    Args:
        name: for the log.
        argv: its command line.
        folder: for its notification socket.
        report: takes one line for the operator; must not raise.
        on_line: see `Child.start`.
        on_change: called when it is ready, its status changes, or it ends.
        cores: see `Child.start`.
        hang_timeout_s: seconds without progress after which it is killed; 0: never.
        rules: those of its restarts, once it was ready; before, fewer are made.
        is_worker: it gives way to the other processes when memory runs out: it can be started again.
        meanwhile: what the service does without it, once it was ready.

    Attributes:
        exit_code: of its last end; None before the first.
        num_restarts: all restarts so far.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        folder: Path,
        *,
        report: Report,
        on_line: OnLine,
        on_change: Callable[[], None] = lambda: None,
        cores: Collection[int] = (),
        hang_timeout_s: float = 0.0,
        rules: RestartRules = ESSENTIAL,
        meanwhile: str = "",
        is_worker: bool = False,
    ) -> None:
        self.name = name
        self.exit_code: int | None = None
        self.num_restarts = 0
        self._argv = list(argv)
        self._report = report
        self._on_line = on_line
        self._on_change = on_change
        self._cores = cores
        self._hang_timeout_s = hang_timeout_s
        self._rules = rules
        self._meanwhile = meanwhile
        self._is_worker = is_worker
        self._socket = NotifySocket(
            folder / f"{name[:4]}.notify"
        )  # the path of a socket is limited: no longer than the others
        self._watch = PingWatch(0.0)
        self._child: Child | None = None
        self._was_ready = False
        self._leaving = asyncio.Event()
        self._history: deque[ProcessEnd] = deque(maxlen=_MAX_HISTORY)

    @property
    def is_ready(self) -> bool:
        """Whether the present process has said that it is ready."""
        return self._child is not None and self._watch.is_ready

    @property
    def status(self) -> str:
        """What the process says that it does; empty while none runs."""
        return self._watch.status if self._child is not None else ""

    async def run(self) -> GiveUp | None:
        """Keep the process running. Return why it is not started again; None after `let_end`."""
        try:
            while True:
                await self._run_once()
                if self._leaving.is_set():
                    return None
                action = next_action(self._history, time.monotonic(), self._rules if self._was_ready else LOADING)
                if isinstance(action, GiveUp):
                    self._tell_end(action.cause if len(self._history) > 1 else "")
                    return action
                self._tell_end(f"restart {action.number} in {action.after_s:g} s")
                with suppress(TimeoutError):
                    async with asyncio.timeout(action.after_s):
                        await self._leaving.wait()
                        return None
                self.num_restarts += 1
        finally:
            self._socket.close()

    def let_end(self, signum: int | None = None) -> None:
        """Do not start the process again, and send it a signal."""
        self._leaving.set()
        if signum is not None and self._child is not None:
            self._child.signal(signum)

    def signal(self, signum: int) -> None:
        """Send the process a signal, if it runs."""
        if self._child is not None:
            self._child.signal(signum)

    async def _run_once(self) -> None:
        loop = asyncio.get_running_loop()
        self._watch = PingWatch(self._hang_timeout_s)
        variables = {"NOTIFY_SOCKET": str(self._socket.path)}
        if self._hang_timeout_s:
            variables["WATCHDOG_USEC"] = str(int(self._hang_timeout_s * 1e6))
        try:
            child = await Child.start(self.name, self._argv, self._on_line, self._cores, variables)
        except OSError as error:
            self.exit_code = _NO_PROGRAM
            self._history.append(ProcessEnd(time.monotonic(), _NO_PROGRAM))
            self._report(f"{self.name}: cannot be started: {os.strerror(error.errno or 0)}")
            return
        self._child = child
        if self._is_worker:
            child.give_way()
        loop.add_reader(self._socket, self._hear)
        looking = asyncio.create_task(self._look(child)) if self._hang_timeout_s else None
        try:
            self.exit_code = await child.run()
        finally:
            loop.remove_reader(self._socket)
            if looking is not None:
                looking.cancel()
            if child.returncode is None:  # cancelled
                child.signal(signal.SIGKILL)
        self._hear()  # what it still sent
        self._history.append(ProcessEnd(time.monotonic(), self.exit_code))

    def _hear(self) -> None:
        assert self._child is not None, "it listens while a child runs"
        for message in self._socket.receive(self._child.pid):
            before = self._watch.is_ready, self._watch.status
            self._watch.hear(message)
            if self._watch.is_ready and not self._was_ready:
                self._was_ready = True
            elif self._watch.is_ready and not before[0]:
                self._report(f"{self.name}: ready again")
            if before != (self._watch.is_ready, self._watch.status):
                self._on_change()

    async def _look(self, child: Child) -> None:
        while True:
            await asyncio.sleep(self._hang_timeout_s / _LOOKS_PER_LIMIT)
            self._hear()
            if self._watch.is_overdue(time.monotonic()):
                child.kill(self._watch.describe())
                return

    def _tell_end(self, next_step: str) -> None:
        child, self._child = self._child, None
        if child is not None:
            meanwhile = self._meanwhile if self._was_ready else ""
            steps = "; ".join(text for text in (child.describe_end(), next_step, meanwhile) if text)
            self._report(steps + child.describe_last_lines())
        self._on_change()
