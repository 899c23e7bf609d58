"""What clients are told of the model, as the running service says it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from minedraft.client import AsyncClient
from minedraft.errors import Unavailable
from minedraft.http.errors import HttpError
from minedraft.http.wire.openapi import package_version
from minedraft.types import Role

_FRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class Facts:
    """The served model.

    Attributes:
        since: seconds since 1970 from which it is served. max_model_len: tokens of prompt and answer together.
        draft_len: most drafts per round.
    """

    name: str
    since: int
    max_model_len: int
    draft_len: int
    fingerprint: str

    def check_name(self, name: str) -> None:
        """Raise HttpError unless the model has this name."""
        if name != self.name:
            raise HttpError(f"The model `{name}` does not exist; this server has `{self.name}`.", 404)


class ModelFacts:
    """Asks the service, seldom.

    Args:
        name: that the model is served under; None: the name of its folder.
    """

    def __init__(self, client: AsyncClient, name: str | None = None) -> None:
        self._client = client
        self._name = name
        self._facts: Facts | None = None
        self._asked_s = 0.0
        self._asking = asyncio.Lock()

    async def get(self) -> Facts:
        """Return the facts, some seconds old at most.

        Raises:
            Unavailable: the service cannot be reached, or has no verifier yet.
        """
        async with self._asking:
            if self._facts is None or time.monotonic() - self._asked_s > _FRESH_S:
                self._facts = await self._ask()
                self._asked_s = time.monotonic()
        return self._facts

    async def _ask(self) -> Facts:
        status = await self._client.status()
        verifier = next((worker for worker in status.workers if worker.role == Role.VERIFIER.value), None)
        if verifier is None:
            raise Unavailable("the service is still starting", 1.0)
        name = self._name or verifier.model
        return Facts(
            name=name,
            since=round(time.time() - status.uptime_s),
            max_model_len=status.max_model_len,
            draft_len=status.draft_len,
            fingerprint=f"minedraft-{package_version()}-{verifier.model}-{verifier.dtype}",
        )
