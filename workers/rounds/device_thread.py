"""The one thread of a worker that owns its device.

Commands go to it through a bounded mailbox, and it takes the next one by itself: there is no hop through the event
loop between two commands, and health and handshake answer during a forward.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minedraft.errors import InternalError, MineDraftError, Overloaded, ProtocolError
from minedraft.messages import Timing
from minedraft_workers.rounds.actors import REFUSALS, Actor, Executed, Work

logger = logging.getLogger("minedraft.worker")

# Each of the two lanes has at most a draft, a prefill and a release; the rest is room for repeats.
MAILBOX_SIZE = 32
_LEAST_PROGRESS_S = 1e-3  # CPU time

CommandResult = Executed[Any] | MineDraftError


@dataclass(frozen=True, slots=True)
class _Item:
    task: Callable[[], Work[Any]]
    reply: asyncio.Future[CommandResult]
    received_ns: int


class DeviceThread:
    """Runs tasks one after another. Call its methods in the event loop that made it.

    Args:
        on_crash: called in the event loop when a task raised anything but a refusal. The thread has
            ended then, and the process must end too, because the state of the device is unknown.
    """

    def __init__(self, actor: Actor, on_crash: Callable[[], None], mailbox_size: int = MAILBOX_SIZE) -> None:
        self._actor = actor
        self._on_crash = on_crash
        self._mailbox_size = mailbox_size
        self._mailbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self.num_open = 0  # tasks offered and not answered
        self._loop = asyncio.get_running_loop()
        self._crash: InternalError | None = None
        self._current: _Item | None = None  # written by the device thread, like `_cpu_clock`
        self._cpu_clock: int | None = None
        self._last_look = (0.0, 0.0, 0.0)  # monotonic time, the thread's CPU time, seconds without progress
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def offer(self, task: Callable[[], Work[Any]]) -> asyncio.Future[CommandResult]:
        """Put a task into the mailbox and return the future of its result.

        Raises:
            Overloaded: the mailbox is full. InternalError: the thread has crashed.
        """
        if self._crash is not None:
            raise self._crash
        if self.num_open >= self._mailbox_size:
            raise Overloaded(f"{self.num_open} commands are in the mailbox, the limit is {self._mailbox_size}")
        reply: asyncio.Future[CommandResult] = self._loop.create_future()
        self.num_open += 1
        self._mailbox.put(_Item(task, reply, time.monotonic_ns()))
        return reply

    def drop_queued(self, error: MineDraftError) -> None:
        """Answer every task that has not started with `error`."""
        while True:
            try:
                item = self._mailbox.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                self._answer(item, error)

    def end_if_hung(self, hang_s: float) -> bool:
        """Fail all tasks if the thread has been inside one for `hang_s` seconds without using CPU time. Call
        it several times within `hang_s`. A long computation keeps using CPU time, even while it waits for a GPU.

        Returns:
            Whether the thread has failed, by a hang or otherwise, now or before.
        """
        if self._crash is not None or self._cpu_clock is None:
            return self._crash is not None
        now_s = time.monotonic()
        try:
            cpu_s = time.clock_gettime(self._cpu_clock)
        except OSError:  # the thread has ended
            return False
        last_look_s, cpu_before_s, stalled_s = self._last_look
        item = self._current
        if item is None or cpu_s - cpu_before_s > _LEAST_PROGRESS_S:
            stalled_s, cpu_before_s = 0.0, cpu_s
        else:  # bounded, because a process that was stopped (a debugger, SIGSTOP) could not compute
            stalled_s += min(now_s - last_look_s, hang_s / 4)
        self._last_look = (now_s, cpu_before_s, stalled_s)
        if item is not None and stalled_s >= hang_s:
            self._fail(item, TimeoutError(f"no CPU time used for {stalled_s:.0f} s: the device hangs"))
        return self._crash is not None

    def stop(self, timeout_s: float) -> bool:
        """Drop queued tasks and end the thread. Return False if it is still inside a task after `timeout_s`."""
        self.drop_queued(ProtocolError("the worker is stopping"))
        self._mailbox.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        idle_since_ns = time.monotonic_ns()
        while (item := self._mailbox.get()) is not None:
            taken_ns = time.monotonic_ns()
            self._current = item
            outcome: CommandResult
            try:
                work = item.task()
                ready_ns = time.monotonic_ns()
                timing = Timing(
                    queue_ns=taken_ns - item.received_ns,
                    forward_ns=work.forward_ns,
                    busy_ns=ready_ns - taken_ns,
                    idle_ns=taken_ns - idle_since_ns,
                    start_ns=taken_ns,
                )
                outcome = Executed(work.rows, timing, self._actor.num_free_blocks)
            except REFUSALS as error:
                ready_ns, outcome = time.monotonic_ns(), error
            except BaseException as error:  # the process ends with it, see `_fail`
                self._post(self._fail, item, error)
                return
            self._current = None
            idle_since_ns = ready_ns
            self._post(self._answer, item, outcome)

    def _post(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._loop.is_closed():  # closed: the process is ending, and no reply is awaited
                raise

    def _answer(self, item: _Item, outcome: CommandResult) -> None:
        self.num_open -= 1
        if not item.reply.done():
            item.reply.set_result(outcome)

    def _fail(self, item: _Item, error: BaseException) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" ({frame[0].filename}:{frame[0].lineno})" if frame else ""
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        logger.critical("the device thread failed, exiting: %s%s", what, where)
        self._crash = InternalError(what)
        self._answer(item, self._crash)
        self.drop_queued(self._crash)
        self._on_crash()
