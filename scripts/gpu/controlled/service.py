"""The controlled pair as real processes: workers with models made on the spot, and the product's scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from minedraft import AsyncClient
from minedraft.address import Address
from minedraft.errors import StartFailed
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
async def controlled_workers(
    folder: Path, tokenizer: Path, plans: list[WorkerPlan]
) -> AsyncIterator[dict[str, str | StartFailed]]:
    """Run workers on sockets in a folder, all started together. Yield by name the address of each that serves, and
    the error of each that has ended, which has its last lines."""
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
        found: dict[str, str | StartFailed] = dict(addresses)
        for plan, result in zip(plans, await asyncio.gather(*starts, return_exceptions=True), strict=True):
            if isinstance(result, StartFailed):
                found[plan.name] = result
            elif isinstance(result, BaseException):
                raise result
        yield found


def started(found: str | StartFailed) -> str:
    """Return the address of a worker that serves.

    Raises:
        StartFailed: it does not.
    """
    if isinstance(found, StartFailed):
        raise found
    return found


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
