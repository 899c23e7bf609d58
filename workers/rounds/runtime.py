"""The runtime of both workers: one thread that owns the device, and rounds that run at most once.

Commands go through a bounded mailbox to the device thread, which takes the next one by itself: there is no
hop through the event loop between two commands, and health and handshake answer during a forward.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from minedraft.core.blocks import BlocksExhausted
from minedraft.errors import (
    InternalError,
    InvalidRequest,
    MemoryExhausted,
    MineDraftError,
    Overloaded,
    ProtocolError,
    StaleRound,
)
from minedraft.messages import ConfigureCommand, DraftCommand, Proposal, Timing, Verdict, VerifyCommand, WorkerInfo
from minedraft.types import Batch, RoundId
from minedraft_workers.rounds.round_log import RoundLog
from minedraft_workers.rounds.tenancy import Tenancy

logger = logging.getLogger("minedraft.worker")

# Each of the two lanes has at most a draft, a prefill and a release; the rest is room for repeats.
MAILBOX_SIZE = 32
# An actor raises these with every request as it was; any other exception ends the process.
REFUSALS = (InvalidRequest, ProtocolError, BlocksExhausted, MemoryExhausted)

# A forward has no time limit, but a thread that is inside one and uses no CPU time for this long hangs.
HANG_S = 120.0
_LEAST_PROGRESS_S = 1e-3  # CPU time

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Work(Generic[RowT]):
    """An actor's result of a command. forward_ns: nanoseconds spent in forwards of the model."""

    rows: tuple[RowT, ...]
    forward_ns: int = 0


@dataclass(frozen=True, slots=True)
class Executed(Generic[RowT]):
    """The result of a command with the other contents of its reply."""

    rows: tuple[RowT, ...]
    timing: Timing
    num_free_blocks: int


class Actor(Protocol):
    """A worker's state. Every method but `info` is called in the device thread."""

    @property
    def info(self) -> WorkerInfo:
        """Constant; the runtime fills in the epoch."""
        ...

    @property
    def num_free_blocks(self) -> int: ...

    def release(self, request_ids: Sequence[int]) -> None:
        """Forget requests; unknown ids are ignored."""
        ...

    def reset(self, target_vocab_size: int) -> None:
        """Forget everything: a new epoch begins. A drafter then proposes only ids below `target_vocab_size`
        (0: no limit), because the target may have fewer rows than the draft model."""
        ...


class DraftingActor(Actor, Protocol):
    """Its methods raise one of REFUSALS for a command that cannot be executed, and then only apply its releases."""

    def draft(self, command: DraftCommand) -> Work[Proposal]: ...

    def prefill(self, command: DraftCommand) -> Work[Proposal]: ...


class VerifyingActor(Actor, Protocol):
    """Its methods raise one of REFUSALS for a command that cannot be executed, and then only apply its releases."""

    def verify(self, command: VerifyCommand) -> Work[Verdict]: ...


class Cores(Protocol):
    """The cores that a worker computes on. Its methods are called in the device thread."""

    def change(self, cores: Sequence[int]) -> None:
        """Compute on these from the next command on. Raise one of REFUSALS if that cannot be; nothing changes then."""
        ...

    def reset(self) -> None:
        """Return to the worker's own: a new epoch begins."""
        ...


class OwnCores:
    """Cores that do not change."""

    def change(self, cores: Sequence[int]) -> None:
        raise InvalidRequest("cores", tuple(cores), "this worker keeps its own")

    def reset(self) -> None:
        pass


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


class WorkerRuntime:
    """Executes each round of the present epoch at most once, and answers a repeat with the stored result.

    Call its methods in the event loop.

    Attributes:
        crashed: set when the process must exit with 70.
        tenancy: the scheduler that uses the worker.
    """

    def __init__(self, actor: Actor, mailbox_size: int = MAILBOX_SIZE, cores: Cores | None = None) -> None:
        self.crashed = asyncio.Event()
        self.info = actor.info
        self.tenancy = Tenancy()
        self._actor = actor
        self._cores = cores or OwnCores()
        self._device = DeviceThread(actor, self.crashed.set, mailbox_size)
        # Random high bits, so that no earlier process has used the same epoch.
        self._log: RoundLog[asyncio.Future[CommandResult]] = RoundLog((secrets.randbits(43) + 1) << 20)

    @property
    def epoch(self) -> int:
        return self._log.epoch

    async def prepare(self, task: Callable[[], None]) -> None:
        """Run a task in the device thread, before the first command.

        Raises:
            MemoryExhausted, InvalidRequest, ProtocolError: as the task. InternalError: it raised anything else,
                and the thread has crashed.
        """

        def prepare() -> Work[Any]:
            task()
            return Work(())

        outcome = await self._device.offer(prepare)
        if isinstance(outcome, MineDraftError):
            raise outcome

    def start_epoch(self, target_vocab_size: int = 0) -> WorkerInfo:
        """Begin a new epoch, even during a forward: queued commands are dropped, and the actor is reset before
        any command of the new epoch. Return the info with the new epoch."""
        self._log.begin_epoch()
        self._device.drop_queued(StaleRound(f"epoch {self.epoch} has begun"))

        def reset() -> Work[Any]:
            self._cores.reset()
            self._actor.reset(target_vocab_size)
            return Work(())

        self._device.offer(reset)
        return replace(self.info, epoch=self.epoch)

    def submit(self, method: str, round_id: RoundId, task: Callable[[], Work[Any]]) -> asyncio.Future[CommandResult]:
        """Run a command's task, unless the same round has run or is running. Return the future of the result,
        which may be an error. Never cancel the future: a repeat may need it.

        Raises:
            StaleRound: the round is of another epoch, or before the last one; nothing is executed.
            Overloaded: the mailbox is full. InternalError: the device thread has crashed.
        """
        reply = self._log.find(method, round_id)
        if reply is None:
            reply = self._device.offer(task)
            self._log.store(method, round_id, reply)
        return reply

    def submit_release(self, epoch: int, request_ids: Sequence[int]) -> asyncio.Future[CommandResult]:
        """Free KV outside a round. Raise as `submit`."""
        self._log.check_epoch(epoch)

        def task() -> Work[Any]:
            self._actor.release(request_ids)
            return Work(())

        return self._device.offer(task)

    def submit_configure(self, command: ConfigureCommand) -> asyncio.Future[CommandResult]:
        """Change the cores between two rounds, at most once per number. Return and raise as `submit`."""

        def task() -> Work[Any]:
            self._cores.change(command.cores)
            return Work(())

        # The log knows these commands as rounds of a method of their own.
        return self.submit("configure", RoundId(command.epoch, Batch.A, command.number), task)

    @property
    def num_open(self) -> int:
        """Commands submitted and not answered yet."""
        return self._device.num_open

    async def watch(self, hang_s: float = HANG_S) -> None:
        """Set `crashed` if the device thread hangs, then return. See `DeviceThread.end_if_hung`."""
        while not self._device.end_if_hung(hang_s):  # noqa: ASYNC110 - a hang is the absence of events
            await asyncio.sleep(hang_s / 8)

    def stop(self, timeout_s: float) -> bool:
        """End the device thread. Return False if it is still inside a forward after `timeout_s`."""
        return self._device.stop(timeout_s)
