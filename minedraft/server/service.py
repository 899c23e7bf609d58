"""The service behind its doors: submits clients' calls to the pipeline and streams their text.

Every check that needs no model is made before any work. Every failure is one of `minedraft.errors`. The
requests of a call end with it, however it ends. A door (gRPC; there can be others) decodes a call, runs it
inside `counted`, and encodes its output.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from traceback import format_tb

from minedraft.core.queueing.pace import Pace
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import (
    Draining,
    DuplicateRequest,
    InternalError,
    InvalidRequest,
    MineDraftError,
    Overloaded,
    RequestAborted,
    Unavailable,
)
from minedraft.models.generation_config import describe_unapplied
from minedraft.observe.spans import RequestSpans
from minedraft.observe.status import StatusBoard
from minedraft.output import Output, ServiceStatus
from minedraft.prompts import GenerateCall
from minedraft.server.intake import Intake
from minedraft.server.lending import Lending, Lent
from minedraft.server.live_call import LiveCall
from minedraft.settings.service import Settings
from minedraft.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_REUSE_S = 0.2


class InferenceService:
    """Answers calls; refuses them before `open` and after `drain`.

    Everything that can wait here is bounded: calls in all (max_waiting and the seats), prompts that wait to be
    tokenised (`tokenizing.py`, by characters), requests that wait for a seat (by number and by tokens), and the tokens
    of a sample that wait for its client (`answer.py`), which then takes part in no round. A call beyond a bound is
    refused at once, with a hint when to try again.

    Attributes:
        board, pace: observers of the pipeline's events.
        spans: makes a span of each call, if the settings ask for it.
        absent: processes that should run and do not, besides the workers.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        self.board = StatusBoard(settings)
        self.pace = Pace()
        self.spans: RequestSpans | None = None
        self.absent = ""
        self._settings = settings
        self.tokenizer = tokenizer
        self._intake = Intake(tokenizer)
        self._pipeline: Pipeline | None = None
        self._is_open = False
        self._is_draining = False
        self._live: dict[str, LiveCall] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._lending: Lending | None = None  # from `open` on

    @property
    def state(self) -> str:
        """starting | serving | degraded | recovering | draining."""
        if self._is_draining:
            return "draining"
        if self._pipeline is None or not self._is_open:
            return "starting"
        if not self._pipeline.has_verifier:
            return "recovering"
        is_without_drafts = (self._settings.needs_drafter and self._pipeline.drafter is None) or self.board.suspended
        return "degraded" if is_without_drafts or self.absent else "serving"

    async def open(self, pipeline: Pipeline) -> None:
        """Log which generation settings of the model are not applied, generate a few tokens through both
        workers, then accept requests.

        Raises:
            MineDraftError: the generation failed.
        """
        self._pipeline = pipeline
        self._lending = Lending(pipeline)
        if self._settings.target is not None and (unapplied := describe_unapplied(self._settings.target)):
            logger.warning("%s", unapplied)
        if not self.tokenizer.eos_ids:
            logger.warning("the model has no end-of-sequence token: answers end at max_new_tokens or a stop string")
        async with aclosing(self._answer(pipeline, self._intake.warm_up(pipeline), "warm-up", "")) as outputs:
            async for _ in outputs:
                pass
        self._is_open = True

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, let live ones finish, and end those that are still live after `timeout_s`."""
        self._is_draining = True
        self._end_loan()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self.end_all(
                Draining(f"the service stopped before the answer was complete (drain_timeout_s {timeout_s:g})")
            )

    def end_all(self, error: MineDraftError) -> None:
        """End every live call with this error, and the loan."""
        self._end_loan()
        for call in self._live.values():
            call.fail(error)

    @contextmanager
    def counted(self, name: str, describe_cancel: Callable[[], MineDraftError] | None = None) -> Iterator[None]:
        """Wrap a whole call, so that its failure is counted once, wherever it happens. The log names failures that are
        the service's own, and no prompt.

        Args:
            name: what the log calls it.
            describe_cancel: returns the error that a cancellation counts as; if None, it is not a failure.

        Raises:
            MineDraftError: the error of the call; InternalError in place of any other exception.
        """
        try:
            yield
        except asyncio.CancelledError:
            if describe_cancel is not None:
                self.board.count_error(describe_cancel())
            raise
        except MineDraftError as error:
            if isinstance(error, InternalError):
                logger.error("%s failed: %s", name, error)
            self.board.count_error(error)
            raise
        except Exception as error:
            # Not the error's own words, which may quote the prompt.
            cause, where = type(error).__name__, "".join(format_tb(error.__traceback__))
            logger.error("%s failed: %s at\n%s", name, cause, where)
            internal = InternalError(f"{name} failed inside the service")
            self.board.count_error(internal)
            raise internal from None

    def generate(self, call: GenerateCall, client: str) -> AsyncGenerator[Output, None]:
        """Return a generator of the pieces of all samples of a call. Closing it ends the samples.

        Args:
            call: the call; without a request id it gets a random one.
            client: the client's name; long prompts of different clients take turns.

        Raises:
            Draining, Unavailable: in this call, if no requests are accepted.
            MineDraftError: from the generator; the subclass says why.
        """
        call = replace(call, request_id=call.request_id or uuid.uuid4().hex)
        outputs = self._answer(self._accepting(), call, call.request_id, client)
        return outputs if self.spans is None else self.spans.traced(outputs, call)

    def abort(self, request_id: str) -> bool:
        """End a call; it keeps its output so far. Return False if no live call has this id."""
        call = self._live.get(request_id)
        if call is None or self._pipeline is None:
            return False
        if not call.pipeline_ids:  # still being tokenised
            call.fail(RequestAborted(f"request {request_id!r} was aborted before its first token"))
        for pipeline_id in call.pipeline_ids:
            self._pipeline.abort(pipeline_id)
        return True

    def status(self) -> ServiceStatus:
        """Return state, batches, workers and rates."""
        return replace(self.board.status(self.state, self._pipeline), absent=self.absent)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Lent]:
        """Lend the service to one client, which may change its limits; they are restored when the block ends.

        Raises:
            InvalidRequest: the service runs without --allow-configure. Unavailable: another client has borrowed
            it, or it is starting. Draining: it drains, or began to during the loan.
        """
        self._accepting()
        if not self._settings.allow_configure:
            raise InvalidRequest("allow_configure", False, "the service was started without --allow-configure")
        assert self._lending is not None, "set when it opened"
        async with self._lending.lend() as lent:
            yield lent

    def _end_loan(self) -> None:
        if self._lending is not None:
            self._lending.end()

    def _accepting(self) -> Pipeline:
        if self._is_draining:
            raise Draining("the service is draining and takes no new requests")
        if self._pipeline is None or not self._is_open:
            raise Unavailable("the service is still starting")
        return self._pipeline

    async def _answer(
        self, pipeline: Pipeline, call: GenerateCall, name: str, client: str
    ) -> AsyncGenerator[Output, None]:
        await self._check_name(name)
        self._check_room()
        live = self._live[name] = LiveCall(pipeline, call.timeout_s, call.interval_s)
        self._idle.clear()
        try:
            with self._hinted():
                await live.prepare(self._intake.submit(pipeline, call, live, name, client))
            while True:
                await live.wait()
                for output in live.take():
                    yield output
                if (error := live.error) is not None:
                    raise error
                if live.is_sent:
                    return
        finally:
            del self._live[name]
            live.close()
            if not self._live:
                self._idle.set()

    async def _check_name(self, name: str) -> None:
        if (namesake := self._live.get(name)) is not None:
            # Its client may have dropped that call: gRPC can report this after the client's next call.
            with suppress(TimeoutError):
                async with asyncio.timeout(_REUSE_S):
                    await namesake.gone.wait()
        if name in self._live:
            raise DuplicateRequest(f"request_id {name!r} is in use by a live request")

    def _check_room(self) -> None:
        """Raise Overloaded if there are too many calls; before tokenising, because refusing must stay cheap."""
        limit = self._settings.max_waiting + self._settings.max_in_flight
        with self._hinted():
            if len(self._live) >= limit:
                raise Overloaded(f"{len(self._live)} requests are live or waiting, the limit is {limit}")

    @contextmanager
    def _hinted(self) -> Iterator[None]:
        """Tell a call that is refused in the block when to try again."""
        try:
            yield
        except Overloaded as error:
            error.retry_after_s = self.pace.refuse(asyncio.get_running_loop().time())
            raise
