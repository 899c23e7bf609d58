"""Engines that are HTTP servers on a unix socket and stream events, one `data: JSON` line for each piece."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2
import psutil

from minedraft.errors import StartFailed
from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment
from scripts.lib.peers.arrivals import Stream
from scripts.lib.peers.cells import Cell
from scripts.lib.peers.engines.affinity import end, family, is_alive
from scripts.lib.peers.engines.errors import PeerFailed

_EXECUTE = "scripts.lib.peers.engines.execute"
_START_S = 600.0  # four of them may start at the same time, on a machine with other work
_POLL_S = 0.1
_STOP_S = 2.0  # an engine has nothing to save
_MOMENT_S = 0.5
# The last line of a traceback, plain or behind what a logger puts before it.
_NAMES_ERROR = re.compile(r"^(\([^)]*\) )?(ERROR [^\]]*\] )?[\w.]*(Error|Exception)\w*: ")
_DATA = "data: "
_DONE = "[DONE]"


class Dialect(Protocol):
    """How a server is asked, and what its events mean."""

    path: str

    def body(self, prompt: Sequence[int], cell: Cell) -> dict[str, Any]:
        """Return the JSON of a request for a greedy answer that is streamed."""
        ...

    def tokens(self, event: Mapping[str, Any]) -> Sequence[int]:
        """Return the new token ids that an event tells."""
        ...

    def num_tokens(self, event: Mapping[str, Any], num_before: int) -> int:
        """Return how many new tokens there are, with those that no event tells.

        Args:
            num_before: tokens of the events before.
        """
        ...


@dataclass(slots=True)
class HttpEngine:
    """A running server."""

    name: str
    pid: int
    client: httpx2.AsyncClient
    dialect: Dialect

    async def answer(self, prompts: Sequence[Sequence[int]], cell: Cell) -> list[Stream]:
        try:
            seen = await asyncio.gather(*(self._listen(prompt, cell) for prompt in prompts))
        except httpx2.HTTPError as error:
            raise PeerFailed(f"{self.name}: {type(error).__name__}: {error}") from None
        return [
            to_stream(self.name, self.dialect, len(prompt), sent_s, lines)
            for prompt, (sent_s, lines) in zip(prompts, seen, strict=True)
        ]

    async def _listen(self, prompt: Sequence[int], cell: Cell) -> tuple[float, list[tuple[float, str]]]:
        """Return when the request was sent, and each line with its time. Lines are read later, off the clock."""
        body = self.dialect.body(prompt, cell)
        lines: list[tuple[float, str]] = []
        sent_s = time.monotonic()
        async with self.client.stream("POST", self.dialect.path, json=body) as reply:
            if reply.status_code != httpx2.codes.OK:
                said = (await reply.aread()).decode(errors="replace")[:300]
                raise PeerFailed(f"{self.name}: HTTP {reply.status_code}: {said}")
            async for line in reply.aiter_lines():
                lines.append((time.monotonic(), line))
        return sent_s, lines


def to_stream(
    name: str, dialect: Dialect, num_prompt_tokens: int, sent_s: float, lines: Iterable[tuple[float, str]]
) -> Stream:
    """Return the answer that the lines of one reply are.

    Raises:
        PeerFailed: it has no tokens.
    """
    arrivals_s: list[float] = []
    piece_lens: list[int] = []
    token_ids: list[int] = []
    num_before = 0
    for at_s, line in lines:
        if line.startswith(_DATA) and line != _DATA + _DONE:
            event = json.loads(line.removeprefix(_DATA))
            count = dialect.num_tokens(event, num_before)
            if count:
                arrivals_s.append(at_s)
                piece_lens.append(count)
                token_ids += dialect.tokens(event)
                num_before += count
    if not arrivals_s:
        raise PeerFailed(f"{name}: an answer without tokens")
    return Stream(num_prompt_tokens, sent_s, tuple(arrivals_s), tuple(piece_lens), tuple(token_ids))


@asynccontextmanager
async def http_server(
    name: str, argv: Sequence[str | Path], socket: Path, dialect: Dialect, **variables: str
) -> AsyncIterator[HttpEngine]:
    """Run a server that listens at `socket` until the block ends.

    Args:
        variables: of its environment, besides this process's.

    Raises:
        StartFailed: it ended before it was ready, or is not ready in time.
    """
    command = child_command(_EXECUTE, *map(str, argv))
    errors: list[str] = []  # the first is the cause; the last lines are often those of who called whom
    process = WatchedProcess(
        command,
        on_line=lambda line: errors.append(line) if _NAMES_ERROR.search(line) else None,
        environment=child_environment(**variables),
    )
    process.start()
    try:
        transport = httpx2.AsyncHTTPTransport(uds=str(socket), limits=httpx2.Limits(max_connections=None))
        async with httpx2.AsyncClient(transport=transport, base_url="http://peer", timeout=None) as client:
            await _wait_ready(name, process, client, errors)
            yield HttpEngine(name, process.pid, client, dialect)
    finally:
        processes = family(process.pid)
        process.signal(signal.SIGTERM)
        try:
            await _wait_ended(processes)
        finally:
            # What is left of them holds the pipe that `process` reads to its end.
            end(processes)
            await process.stop_async(_STOP_S)


async def _wait_ended(processes: Sequence[psutil.Process]) -> None:
    """Return when the first process has ended and the others have had a moment, or after the time to stop."""
    first, others = processes[:1], processes[1:]
    for group, seconds in ((first, _STOP_S), (others, _MOMENT_S)):
        for _ in range(round(seconds / _POLL_S)):
            if not any(is_alive(each) for each in group):
                break
            await asyncio.sleep(_POLL_S)


async def _wait_ready(name: str, process: WatchedProcess, client: httpx2.AsyncClient, errors: Sequence[str]) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.ended.done():
            raise StartFailed("\n  ".join([f"{name} did not start:", *errors[:1], *process.tail]))
        with suppress(httpx2.HTTPError):
            if (await client.get("/health", timeout=5.0)).status_code == httpx2.codes.OK:
                return
        await asyncio.sleep(_POLL_S)
    raise StartFailed("\n  ".join([f"{name} is not ready after {_START_S:.0f} s:", *process.tail]))
