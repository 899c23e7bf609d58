"""The requests that run while something goes wrong, and the states that the service shows meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import MineDraftError
from minedraft.messages import TokenLogprobs
from minedraft.output import ServiceStatus

NUM_NEW = 64
HANG_S = 100.0  # generous: what hangs, hangs for ever
SETTLED_S = 100.0
_POLL_S = 0.02

_GREEDY = SamplingParams(max_new_tokens=NUM_NEW, ignore_eos=True, logprobs=2)

# Greedy and seeded, with prompts shorter and longer than a chunk of prompt tokens.
ASKED: tuple[tuple[list[int], SamplingParams], ...] = (
    ([5, 6, 7, 8], _GREEDY),
    ([3 + 7 * i % 300 for i in range(320)], _GREEDY),
    ([11, 12, 13], replace(_GREEDY, temperature=0.8, seed=5)),
    ([9, 9, 40], replace(_GREEDY, temperature=1.0, top_p=0.9, seed=6)),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, each with the target's log-probabilities: the same answer has the same bits in them."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]


Answers = list[Answer | MineDraftError]


async def ask_all(address: str) -> Answers:
    """Send all of ASKED together; return the answer to each, or its error.

    Raises:
        TimeoutError: a client got neither.
    """

    async def ask(client: AsyncClient, prompt: list[int], params: SamplingParams) -> Answer | MineDraftError:
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        try:
            async for piece in client.generate(prompt, params):
                tokens += piece.token_ids
                logprobs += piece.logprobs
        except MineDraftError as error:
            return error
        return Answer(tuple(tokens), tuple(logprobs))

    async with asyncio.timeout(HANG_S), AsyncClient(address) as client:
        return list(await asyncio.gather(*(ask(client, *asked) for asked in ASKED)))


class States:
    """The states of a service, with the moment in which each was seen first."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str]] = []
        self.status: ServiceStatus | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.seen)

    def see(self, name: str) -> None:
        if not self.seen or self.seen[-1][1] != name:
            self.seen.append((time.monotonic(), name))

    def seconds_after(self, at_s: float) -> tuple[float | None, float | None]:
        """Return the seconds from a moment until the service showed another state, and until it was as before."""
        later = [(moment_s - at_s, name) for moment_s, name in self.seen if moment_s >= at_s]
        if not later:
            return None, None
        return later[0][0], later[-1][0] if later[-1][1] == self.seen[0][1] else None


@asynccontextmanager
async def watching(address: str) -> AsyncIterator[States]:
    """Watch the state of a service while the block runs; no answer is the state "unreachable"."""
    states = States()

    async def watch(client: AsyncClient) -> None:
        while True:
            try:
                states.status = await client.status()
                states.see(states.status.state)
            except MineDraftError:
                states.see("unreachable")
            await asyncio.sleep(_POLL_S)

    async with AsyncClient(address) as client:
        states.status = await client.status()
        states.see(states.status.state)
        watcher = asyncio.create_task(watch(client))
        try:
            yield states
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


def is_settled(status: ServiceStatus) -> bool:
    """Return whether both workers are there, nothing runs, and every block is free."""
    is_free = all(worker.state == "ready" and worker.num_free_blocks == worker.num_blocks for worker in status.workers)
    return status.state == "serving" and is_free and status.num_waiting == status.num_running == 0


async def settled(client: AsyncClient) -> ServiceStatus:
    """Return the status when everything is back; fail when it does not come back."""
    deadline_s = time.monotonic() + SETTLED_S
    while True:
        try:
            if is_settled(status := await client.status()):
                return status
            what = str(status)
        except MineDraftError as error:
            what = str(error)
        assert time.monotonic() < deadline_s, f"not as before after {SETTLED_S:g} s: {what}"
        await asyncio.sleep(_POLL_S)
