"""A child process that any thread can start and stop, with an event loop or without."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain, repeat
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

_TAIL_LINES = 20
_STOP_S = 5.0
_NO_PROGRAM = 127  # a shell's exit code for it

OnText = Callable[[str], object]


class WatchedProcess:
    """A child, read and waited for by a thread of its own; as a context manager it runs while the block does.

    Standard output and error are one stream of lines. The child has a process group of its own, so that a
    terminal's Ctrl-C reaches only the parent. That thread starts it, too, and lives as long as it does: a
    child that asks the kernel to end it with its parent (`child_command`) is bound to that thread.

    Args:
        on_line: called in that thread with each line.
        environment: this process's by default.

    Attributes:
        tail: the last lines.
        ended: its exit code, once it has ended and was read to its end (negative: a signal).
    """

    def __init__(
        self,
        argv: Sequence[str],
        on_line: OnText = lambda line: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.ended: Future[int] = Future()
        self._started: Future[subprocess.Popen[bytes]] = Future()
        for future in (self.ended, self._started):
            future.set_running_or_notify_cancel()  # so that nobody who waits can cancel it
        self._argv = list(argv)
        self._on_line = on_line
        self._environment = dict(os.environ if environment is None else environment)
        # Not waited for when the interpreter ends: the child ends with it.
        self._thread = threading.Thread(target=self._run, name="watched-process", daemon=True)

    def start(self) -> None:
        """Raises OSError: the program cannot be started."""
        try:
            self._thread.start()
            self._started.result()
        except BaseException:
            self.stop(_STOP_S)
            raise

    @property
    def pid(self) -> int:
        return self._started.result().pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.ended.result() if self.ended.done() else None

    def signal(self, signum: int) -> None:
        """Send a signal, if it runs."""
        if self._is_running:
            self._started.result().send_signal(signum)

    def stop(self, *patience_s: float) -> None:
        """End it and return when it has ended: SIGTERM once for each time given, then SIGKILL.

        Raises:
            KeyboardInterrupt: after the end. An interrupt does not wait for the next signal to be due.
        """
        interrupt: KeyboardInterrupt | None = None
        steps = _steps(patience_s)
        while self._is_running:
            try:
                signum, seconds = next(steps)
                self.signal(signum)
                self.ended.result(seconds)
            except TimeoutError:
                pass
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    async def stop_async(self, *patience_s: float) -> None:
        """The same in an event loop; a cancellation is such an interrupt."""
        interrupt: asyncio.CancelledError | None = None
        steps = _steps(patience_s)
        while self._is_running:
            signum, seconds = next(steps)
            self.signal(signum)
            ended = asyncio.wrap_future(self.ended)
            try:
                await asyncio.wait({ended}, timeout=seconds)
            except asyncio.CancelledError as error:
                interrupt = error
            finally:
                ended.cancel()
        if interrupt is not None:
            raise interrupt

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(_STOP_S)

    @property
    def _is_running(self) -> bool:
        return self._thread.ident is not None and not self.ended.done()

    def _run(self) -> None:
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
                env=self._environment,
            )
        except OSError as error:
            self.ended.set_result(_NO_PROGRAM)
            self._started.set_exception(error)
            return
        self._started.set_result(process)
        assert process.stdout is not None, "started with a pipe"
        for line in process.stdout:
            self._pass_on(line.decode(errors="replace").rstrip())
        process.stdout.close()
        self.ended.set_result(process.wait())

    def _pass_on(self, line: str) -> None:
        self.tail.append(line)
        try:
            self._on_line(line)
        except Exception:  # the child must not block on a pipe that nobody reads
            logger.exception("what was to take the lines of process %d failed", self.pid)


def _steps(patience_s: Sequence[float]) -> Iterator[tuple[int, float | None]]:
    """Signals, ever more firm, and the seconds that each is given; None: without end."""
    return chain(((signal.SIGTERM, seconds) for seconds in patience_s), repeat((signal.SIGKILL, None)))
