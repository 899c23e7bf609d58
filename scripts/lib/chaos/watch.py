"""Watches a service: its state, and how long it takes to be whole again."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from minedraft import AsyncClient
from minedraft.errors import MineDraftError
from minedraft.output import ServiceStatus
from scripts.lib.chaos.requests import Asked

_POLL_S = 0.05
_PROBE_S = 30.0
_PROBE_NEW = 4


class NotBack(Exception):
    """The service is not as before in time; the message says what it is."""


class Watch:
    """Asks a service for its status, over a connection of its own.

    Attributes:
        status: the last one, None while there is no answer.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.status: ServiceStatus | None = None

    async def look(self) -> ServiceStatus | None:
        """Return the present status; None if there is no answer."""
        try:
            self.status = await self._client.status()
        except MineDraftError:
            self.status = None
        return self.status

    async def epochs(self) -> dict[str, int]:
        status = await self.look()
        return {worker.role: worker.epoch for worker in status.workers} if status is not None else {}

    async def back(self, since_s: float, before: dict[str, int], replaced: tuple[str, ...], within_s: float) -> float:
        """Return the seconds from a moment until the service is whole: it serves, with both workers, those `replaced`
        of another epoch than `before`.

        Raises:
            NotBack: not within `within_s`.
        """
        while True:
            status = await self.look()
            if status is not None and status.state == "serving" and _is_whole(status, before, replaced):
                return time.monotonic() - since_s
            if time.monotonic() - since_s > within_s:
                raise NotBack(f"not as before {within_s:g} s after a fault: {describe(status)}")
            await asyncio.sleep(_POLL_S)

    async def probe(self, asked: Asked) -> float:
        """Send a short request until it is answered, and return the seconds that took.

        Raises:
            NotBack: it is not answered, or wrongly.
        """
        params = replace(asked.params, max_new_tokens=_PROBE_NEW, n=1)
        started_s = time.monotonic()
        while True:
            try:
                answer = await self._client.complete(asked.prompt, params, timeout_s=_PROBE_S)
            except MineDraftError as error:
                if time.monotonic() - started_s > 2 * _PROBE_S or not error.retryable:
                    raise NotBack(f"a new request was not answered: {error}") from None
                await asyncio.sleep(_POLL_S)
                continue
            if answer.token_ids != asked.truth[0][:_PROBE_NEW]:
                raise NotBack(f"a new request was answered with {answer.token_ids}")
            return time.monotonic() - started_s

    async def idle(self, within_s: float) -> list[str]:
        """Wait until nothing runs and all KV is free. Return what has not come back."""
        deadline_s = time.monotonic() + within_s
        while True:
            status = await self.look()
            left = _left(status)
            if not left or time.monotonic() > deadline_s:
                return left
            await asyncio.sleep(_POLL_S)


def describe(status: ServiceStatus | None) -> str:
    """Return one line about a status."""
    if status is None:
        return "no answer"
    workers = ", ".join(f"{w.role} {w.state} {w.num_free_blocks}/{w.num_blocks} free" for w in status.workers)
    return f"{status.state}, {status.num_running} running, {status.num_waiting} waiting; {workers}"


def _is_whole(status: ServiceStatus, before: dict[str, int], replaced: tuple[str, ...]) -> bool:
    here = {worker.role: worker.epoch for worker in status.workers if worker.state == "ready"}
    return here.keys() >= before.keys() and all(here[role] != before.get(role) for role in replaced if role in here)


def _left(status: ServiceStatus | None) -> list[str]:
    if status is None:
        return ["the service does not answer"]
    left = [
        f"{worker.num_blocks - worker.num_free_blocks} blocks of the {worker.role}"
        for worker in status.workers
        if worker.num_free_blocks != worker.num_blocks
    ]
    if status.num_running or status.num_waiting:
        left.append(f"{status.num_running} running and {status.num_waiting} waiting requests")
    return left
