"""A child process that any thread can start and stop, with or without an event loop."""

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
_NO_PROGRAM = 127  # a shell's exit code for a missing program

OnText = Callable[[str], object]


class WatchedProcess:
    """A child process, and a thread that starts it, reads it and waits for it. As a context manager, the child
    runs while the block does.

    Standard output and error are one stream of lines. The child has its own process group, so that a
    terminal's Ctrl-C reaches only the parent. The thread lives as long as the child: a child that asks the
    kernel to end it with its parent (`child_command`) is bound to the thread that started it.

    Args:
        on_line: called in that thread with each line.
        environment: the child's environment; default: this process's.

    Attributes:
        tail: the last lines.
        ended: the exit code (negative: a signal), once the child has ended and all its lines are read.
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
            future.set_running_or_notify_cancel()  # so that a caller that waits cannot cancel it
        self._argv = list(argv)
        self._on_line = on_line
        self._environment = dict(os.environ if environment is None else environment)
        # A daemon, so that the interpreter ends without waiting for it: the child ends with the interpreter.
        self._thread = threading.Thread(target=self._run, name="watched-process", daemon=True)

    def start(self) -> None:
        """Start the child. Raise OSError if the program cannot be started."""
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
        """The exit code; None while the child runs."""
        return self.ended.result() if self.ended.done() else None

    def signal(self, signum: int) -> None:
        """Send a signal if the child runs."""
        if self._is_running:
            self._started.result().send_signal(signum)

    def stop(self, *patience_s: float) -> None:
        """Stop the child and return when it has ended: send SIGTERM once for each given time, then SIGKILL.

        Args:
            patience_s: seconds to wait after each SIGTERM.

        Raises:
            KeyboardInterrupt: after the child's end. An interrupt sends the next signal immediately.
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
        """Do the same in an event loop, where a cancellation counts as an interrupt."""
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
        except Exception:  # the child must not block on a pipe that is not read
            logger.exception("on_line failed for a line of process %d", self.pid)


def _steps(patience_s: Sequence[float]) -> Iterator[tuple[int, float | None]]:
    """Yield the signals to send and the seconds to wait after each; None: without a limit."""
    return chain(((signal.SIGTERM, seconds) for seconds in patience_s), repeat((signal.SIGKILL, None)))
