"""A process that the launcher has started: its signals, its stderr, its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Collection, Sequence

_STDERR_LINES = 20

OnLine = Callable[[str, str], bool]


class Child:
    """One supervised process. Its stderr is passed on line by line, and its last lines are kept."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, on_line: OnLine) -> None:
        self.name = name
        self.stderr_tail: deque[str] = deque(maxlen=_STDERR_LINES)
        self._process = process
        self._on_line = on_line
        self._has_spoken = False

    @classmethod
    async def start(cls, name: str, argv: Sequence[str], on_line: OnLine, cores: Collection[int] = ()) -> Child:
        """Start `argv` in its own process group, so that a terminal's Ctrl-C reaches only the parent.

        Args:
            on_line: called with the name and each line of stderr; returns whether it has shown the line.
            cores: the only cores that it may use; empty for all.
        """
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        own_cores = os.sched_getaffinity(0)
        if cores:  # a child inherits those of the thread that starts it, before it has threads of its own
            os.sched_setaffinity(0, cores)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                process_group=0,
                env=environment,
            )
        finally:
            os.sched_setaffinity(0, own_cores)
        return cls(name, process, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def run(self) -> int:
        """Pass stderr on until the process ends; return its exit code (negative: a signal)."""
        assert self._process.stderr is not None, "started with a stderr pipe"
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than the stream's limit; the rest follows
                continue
            if not line:
                break
            text = line.decode(errors="replace").rstrip()
            self.stderr_tail.append(text)
            self._has_spoken |= self._on_line(self.name, text)
        return await self._process.wait()

    def signal(self, signum: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signum)

    def describe_end(self) -> str:
        """Return 'verifier: exit code 70' or 'verifier: killed by SIGKILL', with its last lines if none was shown."""
        code = self._process.returncode
        if code is None:
            return f"{self.name}: still running"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        words = "" if self._has_spoken else "\n  ".join(line for line in self.stderr_tail if line)
        return f"{self.name}: {how}" + (f"; its last lines:\n  {words}" if words else "")
