"""Clients that send one request after another, take the answers in many ways, and check them."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, cast

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import DeadlineExceeded, MineDraftError, RequestAborted
from minedraft.prompts import Prompt
from scripts.lib.chaos.requests import Asked, sampled, shorter
from scripts.lib.chaos.tally import Excuses, Tally

WAYS = {"whole": 70, "abort": 7, "leave": 7, "deadline": 4, "slow": 6, "sampled": 6}
_SLOW_S = 0.3
_PAUSE_S = 0.2  # after a refusal, if it has no hint


class Hung(Exception):
    """A request has got nothing for too long."""


class RandomClient:
    """One client.

    Args:
        patience_s: how long it may get nothing: an answer may wait for two restarts of a worker.
        excuses: when an error in the middle of an answer is none of ours.
    """

    def __init__(
        self,
        client: AsyncClient,
        pool: Sequence[Asked],
        tally: Tally,
        excuses: Excuses,
        rng: random.Random,
        patience_s: float = 120.0,
    ) -> None:
        self._patience_s = patience_s
        self._client = client
        self._pool = pool
        self._tally = tally
        self._excuses = excuses
        self._rng = rng

    async def run(self, stop: asyncio.Event, mean_pause_s: float) -> None:
        """Send requests until `stop` is set."""
        while not stop.is_set():
            await self._ask_once()
            await asyncio.sleep(self._rng.expovariate(1 / mean_pause_s) if self._rng.random() < 0.5 else 0)

    async def _ask_once(self) -> None:
        asked = self._rng.choice(self._pool)
        way = self._rng.choices(list(WAYS), list(WAYS.values()))[0]
        params = sampled(self._rng) if way == "sampled" else shorter(asked, self._rng)
        got: dict[int, list[int]] = defaultdict(list)
        ends: set[int] = set()
        tally, since_s = self._tally, time.monotonic()
        tally.sent += 1
        tally.kinds[way if way != "whole" else asked.kind] += 1
        try:
            was_left = await self._take(asked.prompt, params, way, got, ends)
        except Hung as hung:
            tally.blame(f"{way} {params}: {hung}", is_lost=True)
            return
        except MineDraftError as error:
            self._judge_error(error, way, params, since_s, num_got=sum(map(len, got.values())))
            was_left = True
            if error.retryable:
                await asyncio.sleep(min(getattr(error, "retry_after_s", None) or _PAUSE_S, 2.0))
        else:
            tally.left += was_left
            is_whole = len(ends) == params.n and all(len(got[i]) == params.max_new_tokens for i in ends)
            tally.answered += is_whole and not was_left and self._is_right(asked, way, got)
            if not is_whole and not was_left:
                tally.blame(f"{way} {params}: ended with {dict(got)}", is_lost=True)
        tally.tokens += sum(map(len, got.values()))
        if not self._is_right(asked, way, got):
            tally.blame(f"{asked.kind} {params}: {dict(got)} and not {asked.truth}", is_lost=False)

    def _judge_error(
        self, error: MineDraftError, way: str, params: SamplingParams, since_s: float, num_got: int
    ) -> None:
        tally = self._tally
        tally.reasons[error.reason] += 1
        if isinstance(error, DeadlineExceeded if way == "deadline" else RequestAborted if way == "abort" else ()):
            tally.left += 1
        elif error.retryable and num_got == 0:
            tally.refused += 1
        elif self._excuses.cover(since_s, error):
            tally.interrupted += 1
        else:
            what = f"{way} {params}: {type(error).__name__} after {num_got} tokens: {error}"
            tally.blame(what, is_lost=error.retryable)

    @staticmethod
    def _is_right(asked: Asked, way: str, got: dict[int, list[int]]) -> bool:
        """Return whether all that came is what comes undisturbed; nothing is known of answers without a seed."""
        return way == "sampled" or all(
            tuple(tokens) == asked.truth[index][: len(tokens)] for index, tokens in got.items()
        )

    async def _take(
        self, prompt: Prompt, params: SamplingParams, way: str, got: dict[int, list[int]], ends: set[int]
    ) -> bool:
        """Read an answer in the client's way. Return whether it left before the end.

        Raises:
            MineDraftError: the answer ended with it. Hung: it did not come.
        """
        name = uuid.uuid4().hex
        timeout_s = self._rng.choice((0.05, 0.3, 1.0)) if way == "deadline" else None
        num_most = self._rng.randint(1, 6) if way in ("leave", "abort") else None
        stream = cast(Any, self._client.generate(prompt, params, request_id=name, timeout_s=timeout_s))
        num_pieces = 0
        async with aclosing(stream):
            while True:
                piece = await self._within_patience(anext(stream, None))
                if piece is None:
                    return way == "abort" and num_most is None
                got[piece.index] += piece.token_ids
                if piece.finish_reason is not None:
                    ends.add(piece.index)
                num_pieces += 1
                if way == "slow":
                    await asyncio.sleep(self._rng.uniform(0, _SLOW_S))
                if num_most is not None and num_pieces >= num_most:
                    if way == "leave":
                        return True
                    await self._client.abort(name)
                    num_most = None

    async def _within_patience(self, piece: Any) -> Any:  # noqa: ANN401 - an awaitable of an Output or None
        try:
            async with asyncio.timeout(self._patience_s):
                return await piece
        except TimeoutError:
            raise Hung(f"nothing for {self._patience_s:g} s") from None
