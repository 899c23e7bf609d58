"""The controlled pair as real processes: workers with models made on the spot, and the product's scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from minedraft import AsyncClient
from minedraft.address import Address
from minedraft.rpc.health import INFERENCE_SERVICE, LIVE
from minedraft.types import Role
from scripts.lib.processes import serving

_WORKER = "scripts.gpu.controlled.worker"
_SCHEDULER = "minedraft.server"
_PREFILL_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A worker to start: its name among the others, its role, and the flags of `controlled.worker`."""

    name: str
    role: Role
    flags: tuple[str, ...]


@asynccontextmanager
async def controlled_workers(folder: Path, tokenizer: Path, plans: list[WorkerPlan]) -> AsyncIterator[dict[str, str]]:
    """Run workers on sockets in a folder, all started together. Yield the address of each by its name.

    Raises:
        StartFailed: one of them has ended; the message has its last lines.
    """
    addresses = {plan.name: f"unix:{folder / plan.name}.sock" for plan in plans}
    async with AsyncExitStack() as stack:
        starts = [
            stack.enter_async_context(
                serving(
                    Address.parse(addresses[plan.name]), LIVE, _WORKER, plan.role.value,
                    "--listen", addresses[plan.name], "--tokenizer", str(tokenizer), *plan.flags,
                )
            )
            for plan in plans
        ]  # fmt: skip
        for result in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        yield addresses


@asynccontextmanager
async def scheduler(
    folder: Path, tokenizer: Path, verifier: str, drafter: str, *flags: str
) -> AsyncIterator[AsyncClient]:
    """Run the product's scheduler on two running workers; yield a client, which may borrow the service."""
    listen = f"unix:{folder / 'scheduler.sock'}"
    flags = ("--allow-configure", "--prefill-chunk", str(_PREFILL_CHUNK), *flags)
    flags = ("--target-address", verifier, "--draft-address", drafter, *flags)
    argv = ("--target", str(tokenizer), "--listen", listen, *flags)
    async with serving(Address.parse(listen), INFERENCE_SERVICE, _SCHEDULER, *argv), AsyncClient(listen) as client:
        yield client
