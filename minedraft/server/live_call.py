"""One client's call in progress: its samples, when their output is sent, and what ends it early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator

from minedraft.engine.pipeline import Pipeline
from minedraft.errors import DeadlineExceeded, MineDraftError
from minedraft.output import Output
from minedraft.server.answers.answer import Answer

_SEND_INTERVAL_S = 0.020


class LiveCall:
    """The samples of one call and their ids in the pipeline.

    The first tokens and the end are sent immediately, the tokens between them at most every 20 ms, or at the interval
    that the call asks for: a message costs more than the tokens in it. Tokens that came earlier go with the first that
    come after the interval, and alone only half of it later: to wake for them costs as much as a round.

    Args:
        pipeline: has the samples.
        timeout_s: seconds after which the call fails with DeadlineExceeded; None for no deadline.
        interval_s: seconds between two messages; 0: 20 ms.

    Attributes:
        gone: set when the call has ended and its request id is free again.
    """

    def __init__(self, pipeline: Pipeline, timeout_s: float | None = None, interval_s: float = 0.0) -> None:
        self.gone = asyncio.Event()
        self.answers: list[Answer] = []
        self.pipeline_ids: list[int] = []
        self._pipeline = pipeline
        self._error: MineDraftError | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._not_before_s = 0.0
        self._interval_s = interval_s or _SEND_INTERVAL_S
        self._timer: asyncio.Handle | None = None
        self._is_waking = False
        self._preparing: asyncio.Timeout | None = None
        self._deadline: asyncio.Handle | None = None
        if timeout_s is not None:
            self._deadline = self._loop.call_later(timeout_s, self._expire, timeout_s)

    @property
    def error(self) -> MineDraftError | None:
        """The error that ends the call, of a sample or from outside the pipeline; None if there is none."""
        return self._error or next((answer.error for answer in self.answers if answer.error is not None), None)

    @property
    def is_sent(self) -> bool:
        """Whether all samples have ended without an error and all of them was taken."""
        return all(answer.is_sent for answer in self.answers)

    async def prepare(self, work: Awaitable[None]) -> None:
        """Wait for work that must be done before the first token, but no longer than the call lives.

        Raises:
            MineDraftError: the error that has ended the call.
        """
        try:
            async with asyncio.timeout(None) as self._preparing:  # until `fail` sets an end
                await work
        except TimeoutError:
            pass
        finally:
            self._preparing = None
        if self._error is not None:
            raise self._error

    def notify(self, is_end: bool) -> None:
        """Report that there is something to send."""
        if self._is_waking:
            return
        early_s = 0.0 if is_end else self._not_before_s - self._loop.time()
        if early_s > 0:
            if self._timer is None:
                self._timer = self._loop.call_later(early_s + self._interval_s / 2, self._wake)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._is_waking = True
        # Deferred to the next loop iteration, so that the next round's commands go out first.
        self._timer = self._loop.call_soon(self._wake)

    def hold(self, index: int, is_full: bool) -> None:
        """Pause a sample whose client does not read, or let it go on."""
        # Not now: the pipeline may be delivering the sample's tokens.
        change = self._pipeline.pause if is_full else self._pipeline.resume
        self._loop.call_soon(change, self.pipeline_ids[index])

    def fail(self, error: MineDraftError) -> None:
        """End the call from outside the pipeline: its samples leave the pipeline, and what they have so far is sent."""
        if self._error is not None:
            return
        self._error = error
        for answer in self.answers:
            answer.fail(error)
        for pipeline_id in self.pipeline_ids:
            self._pipeline.abort(pipeline_id)
        if self._preparing is not None and not self._preparing.expired():
            self._preparing.reschedule(self._loop.time())
        self.notify(True)

    def take(self) -> Iterator[Output]:
        """Yield everything that waits to be sent, of all samples."""
        for answer in self.answers:
            yield from answer.take()

    async def wait(self) -> None:
        """Return when there is something to send and the interval has passed."""
        await self._changed.wait()
        self._changed.clear()
        self._not_before_s = self._loop.time() + self._interval_s

    def close(self) -> None:
        """End the call; nothing more is sent, and its samples leave the pipeline."""
        for pipeline_id in self.pipeline_ids:
            self._pipeline.abort(pipeline_id)
        for handle in (self._timer, self._deadline):
            if handle is not None:
                handle.cancel()
        self.gone.set()

    def _expire(self, timeout_s: float) -> None:
        num_tokens = sum(answer.num_tokens for answer in self.answers)
        self.fail(DeadlineExceeded(f"the deadline of {timeout_s:g} s passed after {num_tokens} tokens"))

    def _wake(self) -> None:
        self._timer, self._is_waking = None, False
        self._changed.set()
