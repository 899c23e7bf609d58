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
_PROBE_NEW = 4


class NotBack(Exception):
    """The service is not as before in time; the message says what it is."""


class Watch:
    """Asks a service for its status, over a connection of its own.

    Args:
        patience_s: how long the recovery from a fault may take.

    Attributes:
        status: the last one, None while there is no answer.
    """

    def __init__(self, client: AsyncClient, patience_s: float) -> None:
        self._client = client
        self._patience_s = patience_s
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

    async def back(
        self, since_s: float, before: dict[str, int], roles: tuple[str, ...], ended: tuple[str, ...]
    ) -> float:
        """Return the seconds from a moment until the service answers with the workers of these roles, those `ended`
        with another epoch than `before`.

        Raises:
            NotBack: not in time.
        """
        while True:
            status = await self.look()
            if status is not None and _has(status, before, roles, ended):
                return time.monotonic() - since_s
            if time.monotonic() - since_s > self._patience_s:
                raise NotBack(f"not as before {self._patience_s:g} s after a fault: {describe(status)}")
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
                answer = await self._client.complete(asked.prompt, params, timeout_s=self._patience_s)
            except MineDraftError as error:
                if time.monotonic() - started_s > self._patience_s or not error.retryable:
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


def _has(status: ServiceStatus, before: dict[str, int], roles: tuple[str, ...], ended: tuple[str, ...]) -> bool:
    here = {worker.role: worker.epoch for worker in status.workers if worker.state == "ready"}
    is_there = all(role in here for role in roles if role in before)
    is_new = all(here.get(role) != before[role] for role in ended if role in before)
    return status.state != "starting" and is_there and is_new


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
