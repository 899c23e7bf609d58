"""One client's call in progress: its samples, and when their output is sent."""

from __future__ import annotations

import asyncio

from minedraft.errors import MineDraftError
from minedraft.server.answer import Answer

_SEND_INTERVAL_S = 0.020


class LiveCall:
    """The samples of one call and their ids in the pipeline.

    The first tokens and the end are sent immediately, the tokens between them at most every 20 ms: a
    message costs more than the tokens in it.

    Attributes:
        gone: set when the call has ended and its request id is free again.
        error: the error that ended the call from outside the pipeline, or None.
    """

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.answers: list[Answer] = []
        self.pipeline_ids: list[int] = []
        self.error: MineDraftError | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._not_before_s = 0.0
        self._timer: asyncio.Handle | None = None

    def notify(self, is_end: bool) -> None:
        """Report that there is something to send."""
        if self._timer is not None:
            if not is_end:
                return
            self._timer.cancel()
        delay_s = 0.0 if is_end else self._not_before_s - self._loop.time()
        # Deferred at least to the next loop iteration, so that the next round's commands go out first.
        if delay_s > 0:
            self._timer = self._loop.call_later(delay_s, self._wake)
        else:
            self._timer = self._loop.call_soon(self._wake)

    def fail(self, error: MineDraftError) -> None:
        """End the call from outside the pipeline."""
        self.error = error
        self.notify(True)

    async def wait(self) -> None:
        """Return when there is something to send and the interval has passed."""
        await self._changed.wait()
        self._changed.clear()
        self._not_before_s = self._loop.time() + _SEND_INTERVAL_S

    def close(self) -> None:
        """Mark the end; nothing more is sent."""
        if self._timer is not None:
            self._timer.cancel()
        self.gone.set()

    def _wake(self) -> None:
        self._timer = None
        self._changed.set()
