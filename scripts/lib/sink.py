"""A sink of the pipeline that keeps what it receives."""

from __future__ import annotations

import asyncio

from minedraft.errors import MineDraftError
from minedraft.messages import TokenLogprobs
from minedraft.output import RequestUsage
from minedraft.types import FinishReason


class Collector:
    """The output of one request; `done` is set at its end.

    Args:
        stop_after: tokens after which it ends the request, as a stop string does.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.reason: FinishReason | None = None
        self.error: MineDraftError | None = None
        self.usage: RequestUsage | None = None
        self.done = asyncio.Event()
        self._stop_after = stop_after

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], num_forced: int) -> bool:
        self.tokens.extend(token_ids)
        self.logprobs.extend(logprobs)
        return self._stop_after is not None and len(self.tokens) >= self._stop_after

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        assert not self.done.is_set(), "a request ends once"
        self.reason, self.error, self.usage = reason, error, usage
        self.done.set()
