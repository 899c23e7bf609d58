"""The service, whatever door its clients come through: their requests become the pipeline's, and tokens text.

Every check that needs no model is made before any work; every failure is one of `minedraft.errors`;
whatever way a call ends, its requests end with it. A door (gRPC; others can stand beside it) decodes a
call, runs it inside `counted`, and encodes what comes of it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress

from minedraft.config import Settings
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
from minedraft.observe.status import StatusBoard
from minedraft.output import Output, ServiceStatus
from minedraft.prompts import GenerateCall
from minedraft.server.intake import Intake
from minedraft.server.lending import Lending, Lent
from minedraft.server.live_call import LiveCall
from minedraft.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_REUSE_S = 0.2


class InferenceService:
    """Answers calls. Refuses them until `open`, and after `drain`."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        self.metrics = StatusBoard(settings)
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
        """starting | serving | degraded | draining."""
        if self._is_draining:
            return "draining"
        if self._pipeline is None or not self._is_open:
            return "starting"
        is_degraded = self._settings.needs_drafter and self._pipeline.drafter is None
        return "degraded" if is_degraded else "serving"

    async def open(self, pipeline: Pipeline) -> None:
        """Say what the model asks for in vain, generate a few tokens through both workers, then accept requests.

        Raises:
            MineDraftError: the generation failed.
        """
        self._pipeline = pipeline
        self._lending = Lending(pipeline)
        if self._settings.target is not None and (unapplied := describe_unapplied(self._settings.target)):
            logger.warning("%s", unapplied)
        if not self.tokenizer.eos_ids:
            logger.warning("the model names no end-of-sequence token: an answer ends at its length or a stop")
        async with aclosing(self._answer(pipeline, self._intake.warm_up(pipeline), "warm-up", "")) as outputs:
            async for _ in outputs:
                pass
        self._is_open = True

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests; let the live ones finish, and end those that do not within the time."""
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
    def counted(self, describe_cancel: Callable[[], MineDraftError] | None = None) -> Iterator[None]:
        """Around the whole of a call, so that each that fails is counted once, whatever part of it fails.

        Args:
            describe_cancel: what a cancellation means; without it that is no failure.

        Raises:
            MineDraftError: what the call raised; InternalError in place of what is not ours.
        """
        try:
            yield
        except asyncio.CancelledError:
            if describe_cancel is not None:
                self.metrics.count_error(describe_cancel())
            raise
        except MineDraftError as error:
            self.metrics.count_error(error)
            raise
        except Exception:
            logger.exception("a request failed")
            internal = InternalError("the request failed inside the service; its log says why")
            self.metrics.count_error(internal)
            raise internal from None

    def generate(self, call: GenerateCall, client: str) -> AsyncGenerator[Output, None]:
        """The pieces of all samples of one call, until all have ended; closing the generator ends them.

        Args:
            call: with a request id, or without for one that is drawn.
            client: tells clients apart, whose long prompts take turns.

        Raises:
            Draining, Unavailable: at once, when no requests are accepted.
            MineDraftError: while it is read; the subclass says why.
        """
        return self._answer(self._accepting(), call, call.request_id or uuid.uuid4().hex, client)

    def abort(self, request_id: str) -> bool:
        """End a call with what it has; False when no live one has this id."""
        call = self._live.get(request_id)
        if call is None or self._pipeline is None:
            return False
        if not call.pipeline_ids:  # still being tokenised
            call.fail(RequestAborted(f"request {request_id!r} was aborted"))
        for pipeline_id in call.pipeline_ids:
            self._pipeline.abort(pipeline_id)
        return True

    def status(self) -> ServiceStatus:
        """State, batches, workers and rates."""
        return self.metrics.status(self.state, self._pipeline)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Lent]:
        """One client has the service to itself to set its limits; those of the start come back at the end.

        Raises:
            InvalidRequest: the operator has not allowed it. Unavailable: another client has it, or the
            service is starting. Draining: the service drains, or began to meanwhile.
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
        if (namesake := self._live.get(name)) is not None:
            # Its client may just have left, and the news of that comes later than the client's next call.
            with suppress(TimeoutError):
                async with asyncio.timeout(_REUSE_S):
                    await namesake.gone.wait()
        if name in self._live:
            raise DuplicateRequest(f"request_id {name!r} is in use by a live request")
        limit = self._settings.max_waiting + self._settings.max_in_flight
        if len(self._live) >= limit:  # before tokenising: refusing must stay cheap
            raise Overloaded(f"{len(self._live)} requests are live or waiting, the limit is {limit}")
        live = self._live[name] = LiveCall()
        self._idle.clear()
        try:
            await self._intake.submit(pipeline, call, live, name, client)
            while True:
                await live.wait()
                for answer in live.answers:
                    for output in answer.take():
                        yield output
                    if (error := answer.error or live.error) is not None:
                        raise error
                if all(answer.is_sent for answer in live.answers):
                    return
        finally:
            for pipeline_id in live.pipeline_ids:
                pipeline.abort(pipeline_id)
            del self._live[name]
            live.close()
            if not self._live:
                self._idle.set()
