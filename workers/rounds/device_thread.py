"""The one thread of a worker that owns its device.

Commands go to it through a bounded mailbox, and it takes the next one by itself: there is no hop through the event
loop between two commands, and health and handshake answer during a forward.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minedraft.core.liveness.stall import Stall
from minedraft.errors import InternalError, MineDraftError, Overloaded, ProtocolError
from minedraft.messages import Timing
from minedraft_workers.pulse import PULSE
from minedraft_workers.rounds.actors import REFUSALS, Actor, Executed, Work
from minedraft_workers.rounds.mailbox import FairMailbox

logger = logging.getLogger("minedraft.worker")

# Each of the two lanes has at most a draft, a prefill and a release; the rest is room for repeats.
MAILBOX_SIZE = 32


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    """What tells a slow worker from one that hangs.

    Attributes:
        is_idle: there is no command: nothing has to move.
        count: differs from look to look while a command really proceeds, at least once a layer.
    """

    is_idle: bool
    count: int


CommandResult = Executed[Any] | MineDraftError


@dataclass(frozen=True, slots=True)
class _Item:
    session: int
    task: Callable[[], Work[Any]]
    reply: asyncio.Future[CommandResult]
    received_ns: int


class DeviceThread:
    """Runs tasks one after another, those of several sessions in turn. Call its methods in the event loop that made it.

    Args:
        actors: of the sessions, one each.
        on_crash: called in the event loop when a task raised anything but a refusal. The thread has
            ended then, and the process must end too, because the state of the device is unknown.
        mailbox_size: tasks of one session that may be offered and not answered.
    """

    def __init__(self, actors: Sequence[Actor], on_crash: Callable[[], None], mailbox_size: int = MAILBOX_SIZE) -> None:
        self._actors = actors
        self._on_crash = on_crash
        self._mailbox_size = mailbox_size
        self._mailbox: FairMailbox[_Item] = FairMailbox(len(actors))
        self._num_open = [0] * len(actors)  # of each session, tasks offered and not answered
        self._loop = asyncio.get_running_loop()
        self._crash: InternalError | None = None
        self._current: _Item | None = None  # written by the device thread, like `_num_taken`
        self._num_taken = 0
        self._stall: Stall | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Tasks offered and not answered."""
        return sum(self._num_open)

    def offer(self, task: Callable[[], Work[Any]], session: int = 0) -> asyncio.Future[CommandResult]:
        """Put a task into the mailbox and return the future of its result.

        Raises:
            Overloaded: the session's part of the mailbox is full. InternalError: the thread has crashed.
        """
        if self._crash is not None:
            raise self._crash
        if (num_open := self._num_open[session]) >= self._mailbox_size:
            raise Overloaded(f"{num_open} commands are in the mailbox, the limit is {self._mailbox_size}")
        reply: asyncio.Future[CommandResult] = self._loop.create_future()
        self._num_open[session] += 1
        self._mailbox.put(session, _Item(session, task, reply, time.monotonic_ns()))
        return reply

    def drop_queued(self, error: MineDraftError, session: int) -> None:
        """Answer every task of a session that has not started with `error`."""
        for item in self._mailbox.take_back(session):
            self._answer(item, error)

    def _drop_all(self, error: MineDraftError) -> None:
        for session in range(len(self._actors)):
            self.drop_queued(error, session)

    def end_if_hung(self, hang_s: float, longest_gap_s: float) -> bool:
        """Fail all tasks if the thread has been inside one for `hang_s` seconds without progress. Call it several
        times within `hang_s`: two calls further apart than `longest_gap_s` count as no more than that.

        Returns:
            Whether the thread has failed, by a hang or otherwise, now or before.
        """
        if self._stall is None:
            self._stall = Stall(longest_gap_s)
        item, progress = self._current, self.progress
        stalled_s = self._stall.look(time.monotonic(), progress.count, is_idle=item is None)
        if self._crash is None and item is not None and stalled_s >= hang_s:
            self._fail(item, TimeoutError(f"no progress for {stalled_s:.0f} s: the device hangs"))
        return self._crash is not None

    @property
    def progress(self) -> WorkerProgress:
        """Whether there is anything to do, and how far the thread has got with it."""
        return WorkerProgress(self.num_open == 0, self._num_taken + PULSE.count)

    def stop(self, timeout_s: float) -> bool:
        """Drop queued tasks and end the thread. Return False if it is still inside a task after `timeout_s`."""
        self._drop_all(ProtocolError("the worker is stopping"))
        self._mailbox.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        idle_since_ns = time.monotonic_ns()
        while (item := self._mailbox.get()) is not None:
            taken_ns = time.monotonic_ns()
            self._current = item
            self._num_taken += 1
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
                num_free_blocks = self._actors[item.session].num_free_blocks
                outcome = Executed(work.rows, timing, num_free_blocks, work.num_not_finite)
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
        self._num_open[item.session] -= 1
        if not item.reply.done():
            item.reply.set_result(outcome)

    def _fail(self, item: _Item, error: BaseException) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" ({frame[0].filename}:{frame[0].lineno})" if frame else ""
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        logger.critical("the device thread failed, exiting: %s%s", what, where)
        self._crash = InternalError(what)
        self._answer(item, self._crash)
        self._drop_all(self._crash)
        self._on_crash()
