"""Runs single workers and schedulers as child processes; `minedraft.local.serve` runs a whole service."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from minedraft.address import Address
from minedraft.errors import StartFailed
from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment
from minedraft.rpc.health import LIVE, wait_serving

ResultT = TypeVar("ResultT")

_STOP_S = 5.0


@asynccontextmanager
async def serving(
    address: Address, service: str, module: str, *flags: str, prefix: Sequence[str] = ()
) -> AsyncIterator[WatchedProcess]:
    """Run a module as a child process until the block ends. The block begins when its `service` at `address` serves.

    Args:
        prefix: a command that runs the one behind it in its place, `ip netns exec NAME`.

    Raises:
        StartFailed: the child ended before that; the message has its last lines.
    """
    process = WatchedProcess([*prefix, *child_command(module, *flags)], environment=child_environment())
    process.start()
    ready = asyncio.create_task(wait_serving(address, service))
    ended = asyncio.wrap_future(process.ended)
    either: set[asyncio.Future[Any]] = {ready, ended}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise StartFailed("\n  ".join([f"{module} did not start:", *process.tail]))
        ready.result()
        yield process
    finally:
        ready.cancel()
        ended.cancel()
        await asyncio.gather(ready, return_exceptions=True)
        await process.stop_async(_STOP_S)


@asynccontextmanager
async def workers(
    folder: Path, module: str, *, verifier: Sequence[str] = (), drafter: Sequence[str] = ()
) -> AsyncIterator[tuple[Address, Address]]:
    """Run both workers, each with its flags, on sockets in a folder. Yield the addresses of verifier and drafter."""
    at = {role: Address.parse(f"unix:{folder}/{role}.sock") for role in ("verifier", "drafter")}
    async with (
        serving(at["verifier"], LIVE, module, "verifier", "--listen", str(at["verifier"]), *verifier),
        serving(at["drafter"], LIVE, module, "drafter", "--listen", str(at["drafter"]), *drafter),
    ):
        yield at["verifier"], at["drafter"]


async def until_told(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return what `work` returns; SIGTERM and SIGHUP cancel it, as Ctrl-C does, so that its processes are stopped."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, task.cancel)
    with suppress(asyncio.CancelledError):
        return await task
    raise KeyboardInterrupt
