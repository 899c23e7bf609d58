"""A drafter for a caller without an event loop: a thread with a loop of its own talks to it.

vLLM's engine core is one thread that must not wait for us. It sends reports and takes drafts, with a deadline; a
drafter that is late, lost or hangs costs drafts and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent import futures
from contextlib import suppress
from typing import TypeAlias

from minedraft.address import Address
from minedraft.engine.failing import MAX_FAILURES
from minedraft.engine.mirrors import make_book
from minedraft.engine.slots import WorkerSlot
from minedraft.engine.workers import Drafter
from minedraft.errors import ConfigError, MineDraftError, ModelError, WorkerLost
from minedraft.messages import DraftCommand, WorkerInfo
from minedraft.rpc.worker_link import GrpcDrafter
from minedraft.vllm.desk import INLINE_TOKENS, PREFILL_TOKENS, DraftDesk, Drafts, StepReport

logger = logging.getLogger("minedraft.vllm.link")

_RECONNECT_TIMEOUT_S = 3.0
_CLOSE_TIMEOUT_S = 5.0
_PUBLISH_S = 1.0

Reply: TypeAlias = "futures.Future[Mapping[str, Drafts]]"


class DrafterLink:
    """The drafter at an address. `open` it, then `send` reports from one thread, and `close` it.

    Args:
        desk: decides what to ask for; it is used in the link's thread only.
        vocab_size, fingerprint: of the target's vocabulary, which the drafter must have.
        connect_timeout_s: seconds that `open` waits for the drafter.
        publish: called in the link's thread about once a second.
    """

    def __init__(
        self,
        address: Address,
        desk: DraftDesk,
        vocab_size: int,
        fingerprint: str,
        connect_timeout_s: float,
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._desk = desk
        self._vocab_size = vocab_size
        self._fingerprint = fingerprint
        self._connect_timeout_s = connect_timeout_s
        self._publish = publish
        self._drafter: Drafter | None = None
        self._loop = asyncio.new_event_loop()
        self._opened: futures.Future[None] = futures.Future()
        self._closing = asyncio.Event()
        self._num_failures = 0  # in a row
        self._lagging: dict[str, None] = {}  # requests that the drafter catches up with
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_catching_up = False
        self._thread = threading.Thread(target=self._run, name="minedraft-drafter", daemon=True)

    @property
    def info(self) -> WorkerInfo | None:
        """The present drafter; None while there is none."""
        drafter = self._drafter
        return None if drafter is None else drafter.info

    def open(self) -> None:
        """Connect. A drafter that does not answer is waited for later, while the target decodes without drafts.

        Raises:
            ConfigError: what answers is no drafter, or none for this target.
        """
        self._thread.start()
        self._opened.result()

    def send(self, report: StepReport) -> Reply:
        """Hand in a report at once. Return the future of the drafts for the requests that it wants drafts for; it
        never fails."""
        reply: Reply = futures.Future()
        try:
            self._loop.call_soon_threadsafe(self._take_in, report, reply)
        except RuntimeError:  # closed
            reply.set_result({})
        return reply

    def close(self) -> None:
        """Drop the connection and end the thread. Safe to call twice."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the thread is just ending by itself: its loop is closed
                self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(_CLOSE_TIMEOUT_S)

    # In the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        slot: WorkerSlot[Drafter] = WorkerSlot("drafter", self._lose, self._gain, self._reconnect)
        try:
            drafter = await self._connect(self._connect_timeout_s)
            self._gain(drafter)
        except ConfigError as error:
            self._opened.set_exception(error)
            return
        except MineDraftError as error:
            logger.warning("no drafter yet, decoding without drafts: %s", error)
            drafter = None
        self._opened.set_result(None)
        serving = asyncio.create_task(slot.run(drafter))
        while not self._closing.is_set():
            self._publish()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _PUBLISH_S)
        for task in (*self._tasks, serving):
            task.cancel()
        await asyncio.gather(*self._tasks, serving, return_exceptions=True)

    async def _reconnect(self) -> Drafter:
        return await self._connect(_RECONNECT_TIMEOUT_S)

    async def _connect(self, timeout_s: float) -> Drafter:
        drafter = await GrpcDrafter.connect(
            self._address, target_vocab_size=self._vocab_size, connect_timeout_s=timeout_s
        )
        try:
            self._check(drafter.info)
        except MineDraftError:
            await drafter.close()
            raise
        return drafter

    def _check(self, info: WorkerInfo) -> None:
        if info.vocab_fingerprint != self._fingerprint:
            limit = (
                f"its vocabulary of {info.vocab_size} ids (fingerprint {info.vocab_fingerprint[:12]}) is not the "
                f"target's of {self._vocab_size} (fingerprint {self._fingerprint[:12]})"
            )
            raise ModelError("drafter", info.model_name, limit)
        if info.feature_size:
            limit = f"it reads {info.feature_size} numbers of the target's hidden states for each token; vLLM gives 0"
            raise ModelError("drafter", info.model_name, limit)

    def _gain(self, drafter: Drafter) -> None:
        self._drafter, self._num_failures = drafter, 0
        self._desk.attach(make_book(drafter.info), drafter.info.epoch)

    def _lose(self, error: MineDraftError) -> None:
        logger.warning("drafter lost, decoding without drafts: %s", error)
        self._drafter = None
        self._desk.detach()

    def _take_in(self, report: StepReport, reply: Reply) -> None:
        try:
            self._desk.take_in(report, time.monotonic())
        except Exception:  # a policy, or we, did wrong; the engine goes on without these drafts
            logger.exception("a report was not taken in; its step has no drafts")
            reply.set_result({})
            return
        self._lagging.update(dict.fromkeys([newcomer.name for newcomer in report.newcomers]))
        self._start(self._answer(report, reply))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, report: StepReport, reply: Reply) -> None:
        try:
            reply.set_result(await self._draft(report) if report.wanted else {})
            await self._catch_up()
        except Exception:
            logger.exception("drafting failed; a step has no drafts")
        finally:
            if not reply.done():
                reply.set_result({})

    async def _draft(self, report: StepReport) -> Mapping[str, Drafts]:
        desk = self._desk
        if nearly_ready := desk.nearly_ready(report.wanted):
            await self._ask(desk.plan_prefill(nearly_ready, INLINE_TOKENS * len(nearly_ready)))
        drafts = await self._ask(desk.plan_draft(report.batch, report.wanted, time.monotonic()))
        self._lagging.update(dict.fromkeys(report.wanted))
        return drafts

    async def _catch_up(self) -> None:
        """Let the drafter cache what it lacks, piece by piece, so that drafts come in between."""
        if self._is_catching_up:
            return
        self._is_catching_up = True
        try:
            while self._lagging:
                names = tuple(self._lagging)
                command = self._desk.plan_prefill(names, PREFILL_TOKENS)
                if command is None:  # none lacks anything, or all have a draft on its way
                    self._lagging.clear()
                else:
                    await self._ask(command)
            await self._release()
        finally:
            self._is_catching_up = False

    async def _release(self) -> None:
        """Send the releases that no command has carried."""
        drafter, book = self._drafter, self._desk.book
        if drafter is None or book is None or self._desk.num_busy or not (released := book.kv.take_releases()):
            return
        try:
            await drafter.release(released)
            book.kv.acknowledge(released)
        except MineDraftError as error:
            book.kv.return_releases(released)
            self._fail(drafter, error)

    async def _ask(self, command: DraftCommand | None) -> Mapping[str, Drafts]:
        """Send a command. Return its drafts; none if it fails, or there is none."""
        drafter = self._drafter
        if drafter is None or command is None:
            return {}
        try:
            is_draft = any(span.draft_len for span in command.spans)
            reply = await (drafter.draft(command) if is_draft else drafter.prefill(command))
        except MineDraftError as error:
            self._desk.refused(command, error.request_id)
            self._fail(drafter, error)
            return {}
        self._num_failures = 0
        return self._desk.executed(command, reply, time.monotonic())

    def _fail(self, drafter: Drafter, error: MineDraftError) -> None:
        if isinstance(error, WorkerLost):  # the slot takes care
            return
        logger.warning("drafter command failed, its round has no drafts: %s", error)
        self._num_failures += error.request_id is None
        if self._num_failures >= MAX_FAILURES:
            drafter.give_up(f"{MAX_FAILURES} commands failed in a row, the last: {error}")
