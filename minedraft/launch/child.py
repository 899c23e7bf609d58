"""A process that the launcher has started: its signals, its stderr, its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_STDERR_LINES = 20
_LAST_WORDS_S = 1.0
_OOM_SCORE_ADJ = "300"
_MAX_LINE_BYTES = 1 << 16
_OF_SERVICE_MANAGER = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})

OnLine = Callable[[str, str], bool]


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells of the end of the process itself. `Process.wait` also waits for the end of its pipe, which a process of its
    own can hold open for longer."""

    def __init__(self) -> None:
        super().__init__(_MAX_LINE_BYTES, asyncio.get_running_loop())
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        self.exited.set()
        super().process_exited()


class Child:
    """One process. Its stderr is passed on line by line, and its last lines are kept."""

    def __init__(self, name: str, transport: asyncio.SubprocessTransport, protocol: _Protocol, on_line: OnLine) -> None:
        self.name = name
        self.stderr_tail: deque[str] = deque(maxlen=_STDERR_LINES)
        self._transport = transport
        self._protocol = protocol
        self._on_line = on_line
        self._has_spoken = False
        self._kill_cause = ""

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        on_line: OnLine,
        cores: Collection[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `argv` in its own process group, so that a terminal's Ctrl-C reaches only the parent.

        Args:
            on_line: called with the name and each line of stderr; returns whether it has shown the line.
            cores: the only cores that it may use; empty for all.
            variables: of its environment, besides this process's without those of a service manager.
        """
        environment = {key: value for key, value in os.environ.items() if key not in _OF_SERVICE_MANAGER}
        own_cores = os.sched_getaffinity(0)
        if cores:  # a child inherits those of the thread that starts it, before it has threads of its own
            os.sched_setaffinity(0, cores)
        try:
            transport, protocol = await asyncio.get_running_loop().subprocess_exec(
                _Protocol,
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                process_group=0,
                env=environment | dict(variables or {}),
            )
        finally:
            os.sched_setaffinity(0, own_cores)
        return cls(name, transport, protocol, on_line)

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    @property
    def returncode(self) -> int | None:
        return self._transport.get_returncode()

    async def run(self) -> int:
        """Pass stderr on until the process ends; return its exit code (negative: a signal).

        What the process itself has written is read to its end. A process of its own that outlives it is not waited
        for, although it holds the pipe.
        """
        reading = asyncio.create_task(self._read())
        await self._protocol.exited.wait()
        await asyncio.wait({reading}, timeout=_LAST_WORDS_S)
        reading.cancel()
        self._transport.close()
        code = self.returncode
        assert code is not None, "it has exited"
        return code

    def give_way(self) -> None:
        """Have the kernel end this process before its parent when memory runs out."""
        with suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(_OOM_SCORE_ADJ)

    def signal(self, signum: int) -> None:
        if self.returncode is None:
            self._transport.send_signal(signum)

    def kill(self, cause: str) -> None:
        """Kill the process, for this cause: SIGKILL, because a stopped process would not get SIGTERM."""
        self._kill_cause = cause
        self.signal(signal.SIGKILL)

    def describe_end(self) -> str:
        """Return 'verifier: exit code 70', 'verifier: killed by SIGKILL' or 'verifier: killed: no progress for 5 s'."""
        code = self.returncode
        if code is None:
            return f"{self.name}: still running"
        if self._kill_cause:
            return f"{self.name}: killed: {self._kill_cause}"
        return f"{self.name}: " + (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def describe_last_lines(self) -> str:
        """Return '; its last lines:' and those lines, or nothing if some were shown, or it said nothing."""
        words = "" if self._has_spoken else "\n  ".join(line for line in self.stderr_tail if line)
        return f"; its last lines:\n  {words}" if words else ""

    async def _read(self) -> None:
        stderr = self._protocol.stderr
        assert stderr is not None, "started with a stderr pipe"
        while True:
            try:
                line = await stderr.readline()
            except ValueError:  # longer than the stream's limit; the rest follows
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.stderr_tail.append(text)
            self._has_spoken |= self._on_line(self.name, text)
