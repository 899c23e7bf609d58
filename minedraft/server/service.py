"""The Inference service: the edge where clients' requests become the pipeline's, and tokens text.

Every check that needs no model is made before any work; every failure leaves through one mapper as
a typed status; whatever way a call ends, its requests end with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

import grpc.aio

from minedraft.config import Settings
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.core.scheduler import Scheduler
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import (
    DeadlineExceeded,
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
from minedraft.output import Output
from minedraft.prompts import ChatPrompt, GenerateCall, TokenPrompt
from minedraft.rpc import error_status
from minedraft.rpc.codec_inference import CLIENT_KEY, borrow_from_pb, generate_from_pb, output_to_pb, status_to_pb
from minedraft.sampling_params import DEFAULT_CHAT_TOKENS, DEFAULT_NEW_TOKENS, SamplingParams
from minedraft.server.answer import Answer
from minedraft.server.tokenizing import PromptTokenizer
from minedraft.text.tokenizer import Tokenizer
from minedraft.v1 import inference_pb2, inference_pb2_grpc

logger = logging.getLogger(__name__)

_SEND_INTERVAL_S = 0.020
_REUSE_S = 0.2
SEND_TIMEOUT_S = 60.0  # a client that reads nothing for so long gives its place to others

Context = grpc.aio.ServicerContext[Any, Any]


class _LiveCall:
    """A Generate call in progress: its samples, the pipeline's ids of them, and when to send.

    The first tokens and the end are sent at once, what comes between at most every 20 ms: a message
    costs more than the tokens in it.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.gone = asyncio.Event()
        self.answers: list[Answer] = []
        self.pipeline_ids: list[int] = []
        self.error: MineDraftError | None = None
        self._loop = asyncio.get_running_loop()
        self._not_before_s = 0.0
        self._timer: asyncio.Handle | None = None

    def notify(self, is_end: bool) -> None:
        """There is something to send."""
        if self._timer is not None:
            if not is_end:
                return
            self._timer.cancel()
        delay_s = 0.0 if is_end else self._not_before_s - self._loop.time()
        # Never in this turn of the loop: the commands of the next round go to the workers first.
        if delay_s > 0:
            self._timer = self._loop.call_later(delay_s, self._wake)
        else:
            self._timer = self._loop.call_soon(self._wake)

    def fail(self, error: MineDraftError) -> None:
        """End it from outside the pipeline."""
        self.error = error
        self.notify(True)

    async def wait(self) -> None:
        """Until there is something to send, and it is time."""
        await self.changed.wait()
        self.changed.clear()
        self._not_before_s = self._loop.time() + _SEND_INTERVAL_S

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self) -> None:
        self._timer = None
        self.changed.set()


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves Generate, Abort, GetStatus and Borrow. Refuses requests until `open`, and after `drain`."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        self.metrics = StatusBoard(settings)
        self._settings = settings
        self.tokenizer = tokenizer
        self._prompts = PromptTokenizer(tokenizer)
        self._pipeline: Pipeline | None = None
        self._is_open = False
        self._is_draining = False
        self._live: dict[str, _LiveCall] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._own_limits: SchedulerLimits | None = None  # those of the start, from `open` on
        self._loan: asyncio.Timeout | None = None  # set while a client has the service borrowed

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
        self._own_limits = pipeline.scheduler.limits
        if self._settings.target is not None and (unapplied := describe_unapplied(self._settings.target)):
            logger.warning("%s", unapplied)
        if not self.tokenizer.eos_ids:
            logger.warning("the model names no end-of-sequence token: an answer ends at its length or a stop")
        call = _warm_up(self.tokenizer, self._settings.draft_len, _context_len(pipeline.scheduler))
        async with aclosing(self._answer(pipeline, call, "warm-up")) as outputs:
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
        """End every live call with this error."""
        self._end_loan()
        for call in self._live.values():
            call.fail(error)

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Context) -> None:
        # Written to the context, not yielded: a cancelled generator would be closed at some later time.
        try:
            pipeline = self._accepting()
            call = generate_from_pb(request)
            name = call.request_id or uuid.uuid4().hex
            async with aclosing(self._answer(pipeline, call, name, _client_of(context))) as outputs:
                async for output in outputs:
                    await _send(context, output)
        except asyncio.CancelledError:
            remaining_s = cast("float | None", context.time_remaining())
            is_late = remaining_s is not None and remaining_s <= 0
            self.metrics.count_error(DeadlineExceeded() if is_late else RequestAborted())
            raise
        except MineDraftError as error:
            self.metrics.count_error(error)
            await error_status.abort(context, error)
        except Exception:
            logger.exception("a request failed")
            await self._abort_internal(context)

    async def Abort(self, request: inference_pb2.AbortRequest, context: Context) -> inference_pb2.AbortReply:
        call = self._live.get(request.request_id)
        if call is None or self._pipeline is None:
            return inference_pb2.AbortReply(found=False)
        if not call.pipeline_ids:  # still being tokenised
            call.fail(RequestAborted(f"request {request.request_id!r} was aborted"))
        for pipeline_id in call.pipeline_ids:
            self._pipeline.abort(pipeline_id)
        return inference_pb2.AbortReply(found=True)

    async def GetStatus(
        self, request: inference_pb2.GetStatusRequest, context: Context
    ) -> inference_pb2.GetStatusReply:
        return status_to_pb(self.metrics.status(self.state, self._pipeline))

    async def Borrow(self, requests: AsyncIterator[inference_pb2.BorrowRequest], context: Context) -> None:
        try:
            pipeline = self._accepting()
            async with self._lent(pipeline) as own:
                await context.write(inference_pb2.BorrowReply())
                async for request in requests:
                    terms = borrow_from_pb(request)
                    pipeline.reconfigure(own.lent(terms), "borrowed")
                    await pipeline.settled()
                    await context.write(inference_pb2.BorrowReply())
            await pipeline.settled()
        except MineDraftError as error:
            self.metrics.count_error(error)
            await error_status.abort(context, error)

    @asynccontextmanager
    async def _lent(self, pipeline: Pipeline) -> AsyncIterator[SchedulerLimits]:
        """One client has the service to itself to set its limits; gives the service's own, which come back at the end.

        Raises:
            InvalidRequest: the operator has not allowed it. Unavailable: another client has it.
            Draining: the service began to drain meanwhile.
        """
        if not self._settings.allow_configure:
            raise InvalidRequest("allow_configure", False, "the service was started without --allow-configure")
        if self._loan is not None:
            raise Unavailable("another client has borrowed the service; it is free when that one ends or hangs up")
        own = self._own_limits
        assert own is not None, "set when it opened"
        try:
            pipeline.is_lent = True
            async with asyncio.timeout(None) as self._loan:  # without end, unless the service drains
                yield own
        except TimeoutError:
            raise Draining("the service is draining: it cannot be borrowed any longer") from None
        finally:
            self._loan = None
            if pipeline.scheduler.limits is not own:
                pipeline.reconfigure(own, "the loan has ended")
            pipeline.is_lent = False

    def _end_loan(self) -> None:
        if self._loan is not None and not self._loan.expired():
            self._loan.reschedule(asyncio.get_running_loop().time())

    def _accepting(self) -> Pipeline:
        if self._is_draining:
            raise Draining("the service is draining and takes no new requests")
        if self._pipeline is None or not self._is_open:
            raise Unavailable("the service is still starting")
        return self._pipeline

    async def _answer(
        self, pipeline: Pipeline, call: GenerateCall, name: str, client: str = ""
    ) -> AsyncGenerator[Output, None]:
        """The outputs of one call, until all its samples have ended; leaving it ends them."""
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
        live = self._live[name] = _LiveCall()
        self._idle.clear()
        try:
            await self._submit(pipeline, call, name, live, client)
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
            live.close()
            del self._live[name]
            live.gone.set()
            if not self._live:
                self._idle.set()

    async def _submit(self, pipeline: Pipeline, call: GenerateCall, name: str, live: _LiveCall, client: str) -> None:
        _check_num_samples(call.sampling.n, pipeline.scheduler.limits)
        tokenizer, is_chat = self.tokenizer, isinstance(call.prompt, ChatPrompt)
        stop_ids = () if call.sampling.ignore_eos else tokenizer.eos_ids
        stop_ids += call.sampling.stop_token_ids
        if call.sampling.skip_special_tokens:
            stop_ids += tokenizer.stop_ids(call.sampling.stop)
        context_len = _context_len(pipeline.scheduler)
        prompt_ids = await self._prompts.encode(call.prompt, client, context_len - 1)
        if live.error is not None:
            raise live.error
        default = DEFAULT_CHAT_TOKENS if is_chat else DEFAULT_NEW_TOKENS
        sampling = call.sampling.fit(context_len - len(prompt_ids), default)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        for index in range(sampling.n):
            new = NewRequest(prompt_ids, sampling, derive_seed(seed, index), tuple(dict.fromkeys(stop_ids)))
            # An answer in a chat is a message of its own; any other continues the prompt's text.
            decoder = tokenizer.stream_decoder(sampling.skip_special_tokens, () if is_chat else prompt_ids)
            answer = Answer(index, decoder, sampling, live.notify, name)
            live.answers.append(answer)
            live.pipeline_ids.append(pipeline.submit(new, answer))

    async def _abort_internal(self, context: Context) -> None:
        error = InternalError("the request failed inside the service; its log says why")
        self.metrics.count_error(error)
        await error_status.abort(context, error)


async def _send(context: Context, output: Output) -> None:
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await context.write(output_to_pb(output))
    except TimeoutError:
        raise Overloaded(f"the client has taken no message for {SEND_TIMEOUT_S:g} s") from None


def _client_of(context: Context) -> str:
    """Tell clients apart: all that come through a unix socket have the same peer name."""
    names = [str(value) for key, value in context.invocation_metadata() or () if key == CLIENT_KEY]
    return f"{context.peer()} {''.join(names)}"


def _check_num_samples(num_samples: int, limits: SchedulerLimits) -> None:
    num_seats = limits.num_batches * limits.max_batch_size
    if num_samples > num_seats + limits.max_waiting:
        limit = f"at most {num_seats + limits.max_waiting}: {num_seats} seats and max_waiting {limits.max_waiting}"
        raise InvalidRequest("n", num_samples, limit)


def _context_len(scheduler: Scheduler) -> int:
    """Tokens of prompt and answer together; fewer than the model's where the KV memory is smaller."""
    return min(scheduler.limits.max_model_len, scheduler.verifier_kv.capacity)


def _warm_up(tokenizer: Tokenizer, draft_len: int, context_len: int) -> GenerateCall:
    """One whole round with drafts after the prompt's, as far as the context has room."""
    num_tokens = min(draft_len + 2, context_len - 1)
    prompt = tokenizer.encode("Hello")[: context_len - num_tokens]
    return GenerateCall(TokenPrompt(tuple(prompt)), SamplingParams(max_new_tokens=num_tokens, ignore_eos=True))


def derive_seed(seed: int, index: int) -> int:
    """The seed of sample `index`; sample 0 has the request's own."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
