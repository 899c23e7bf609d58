"""The processes of a comparison: a drafter, and a server for each way, all running; each is asked in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from minedraft.address import Address
from minedraft.errors import StartFailed
from minedraft.rpc.health import LIVE
from scripts.lib.peers.arrivals import Rates, steady_time, to_rates
from scripts.lib.peers.cells import Cell
from scripts.lib.peers.driving import SAME_TOKENS
from scripts.lib.peers.engines.affinity import family, keep_on
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.http_engine import HttpEngine, http_server
from scripts.lib.peers.engines.vllm_cpu import Completions
from scripts.lib.peers.prompts import PromptSet
from scripts.lib.processes import serving
from scripts.lib.vllm.counters import Counters
from scripts.lib.vllm.environment import PluginEnvironment
from scripts.lib.vllm.watching import counted_between, watched
from scripts.lib.vllm.ways import Places, ServerPlan, Way, server_variables

_WORKER = "minedraft_workers.main"
_PACED = "scripts.lib.vllm.paced"
_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One cell that one way has answered once.

    Attributes:
        counters: what the server counted meanwhile. steady: of that, what it counted while all answers were in flight;
            None if that time was too short.
        starts: the first tokens of each answer.
    """

    way: Way
    cell: Cell
    repeat: int
    rates: Rates
    counters: Counters
    steady: Counters | None
    starts: tuple[tuple[int, ...], ...]


@asynccontextmanager
async def drafter_for(
    plan: ServerPlan, places: Places, num_servers: int, times: Path | None = None
) -> AsyncIterator[Address]:
    """Run a drafter with a session for each server. times: the file that can make it slow (`paced`)."""
    address = Address(path=plan.folder / "drafter.sock")
    num_blocks = num_servers * plan.max_in_flight * -(-plan.max_len // 16)
    flags = [
        *("drafter", "--model", str(plan.draft), "--listen", str(address), "--dtype", plan.dtype),
        *("--device", f"cpu:{places.drafter}", "--num-blocks", str(num_blocks), "--sessions", str(num_servers)),
    ]
    module, more = (_WORKER, []) if times is None else (_PACED, ["--times", str(times)])
    async with serving(address, LIVE, module, *more, *flags):
        yield address


@asynccontextmanager
async def servers_for(
    ways: Sequence[Way], plan: ServerPlan, places: Places, environment: PluginEnvironment, drafter: Address | None
) -> AsyncIterator[tuple[dict[Way, HttpEngine], dict[Way, StartFailed]]]:
    """Run a server for each way, all started together and bound to their cores when they are ready. Yield those that
    serve, and the errors of the others, which have their last lines."""
    async with AsyncExitStack() as stack:
        starts = [
            stack.enter_async_context(
                http_server(
                    way.value,
                    plan.argv(way, environment.python, str(drafter)),
                    plan.socket(way),
                    Completions(),
                    **server_variables(way, places, environment),
                )
            )
            for way in ways
        ]
        engines: dict[Way, HttpEngine] = {}
        failed: dict[Way, StartFailed] = {}
        for way, engine in zip(ways, await asyncio.gather(*starts, return_exceptions=True), strict=True):
            if isinstance(engine, StartFailed):
                failed[way] = engine
            elif isinstance(engine, BaseException):
                raise engine
            else:
                engines[way] = engine
        for way, engine in engines.items():
            server, *others = family(engine.pid)
            keep_on([server], (places.drafter,))
            keep_on(others, places.of(way))
        yield engines, failed


async def measure(way: Way, engine: HttpEngine, prompts: PromptSet, cell: Cell, repeat: int) -> Sample:
    """Have one way answer a cell.

    Raises:
        PeerFailed: it broke off, or does not answer in time.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            async with watched(engine) as readings:
                streams = await engine.answer(prompts.of(cell), cell)
    except TimeoutError:
        raise PeerFailed(f"{way.value}: no answer after {_PATIENCE_S:.0f} s") from None
    starts = tuple(stream.token_ids[:SAME_TOKENS] for stream in streams)
    counters = readings[-1].counters.since(readings[0].counters)
    steady = counted_between(readings, *steady_time(streams))
    return Sample(way, cell, repeat, to_rates(streams), counters, steady, starts)


async def ask_once(engine: HttpEngine, socket: Path, environment: PluginEnvironment, prompt: str) -> str:
    """Return what the server answers to a chat message through the OpenAI client, which is in vLLM's environment."""
    script = Path(__file__).with_name("ask.py")
    process = await asyncio.create_subprocess_exec(
        environment.python, script, socket, prompt, stdout=asyncio.subprocess.PIPE, env={}
    )
    said, _ = await process.communicate()
    return said.decode().strip()
