"""A worker process with a model made on the spot, on the product's own runtime and actors.

`python -m scripts.gpu.controlled.worker drafter|verifier --listen ADDR --tokenizer DIR --shape NAME ...`
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import click

from minedraft.address import Address
from minedraft.device import Device
from minedraft.process.claim import ListenClaim
from minedraft.types import Role
from minedraft_workers.rounds.actors import Actor, DraftingActor, VerifyingActor
from minedraft_workers.rounds.runtime import WorkerRuntime
from scripts.gpu.controlled.shapes import SHAPES
from scripts.gpu.controlled.sleeping import DraftTimes, SleepingDrafter
from scripts.gpu.controlled.token_map import TokenMap


@click.command()
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.option("--listen", required=True, metavar="ADDR", help="Address to serve the scheduler on.")
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path), help="Folder of the tokenizer.")
@click.option("--shape", required=True, type=click.Choice(list(SHAPES)), help="The model's sizes.")
@click.option("--device", default="cpu", metavar="DEVICE", help="Device to run on.")
@click.option("--host-cores", default=None, metavar="cpu:CORES", help="Cores of the process beside a CUDA device.")
@click.option("--dtype", default="bfloat16", type=click.Choice(["float32", "bfloat16"]), help="Format of the weights.")
@click.option("--num-blocks", default=1024, type=click.IntRange(8), help="KV blocks.")
@click.option("--kernels", default="auto", help="What computes; as for minedraft-worker.")
@click.option("--alpha", default=0.8, type=click.FloatRange(0, 1), help="Share of ids that the drafter gets right.")
@click.option("--draft-times", default=None, metavar="JSON", help="Sleep instead: {requests: {drafts: ms}}.")
def main(
    role: str,
    listen: str,
    tokenizer: Path,
    shape: str,
    device: str,
    host_cores: str | None,
    dtype: str,
    num_blocks: int,
    kernels: str,
    alpha: float,
    draft_times: str | None,
) -> None:
    """Run a worker of the controlled pair."""
    if host_cores is not None:
        os.sched_setaffinity(0, Device.parse(host_cores, "host-cores").here("host-cores").cores)
    token_map = TokenMap.make(SHAPES[shape].vocab_size, alpha)
    address = Address.parse(listen, "listen")
    actor: Actor
    with ListenClaim(address):
        if draft_times is not None:
            actor = SleepingDrafter(token_map, DraftTimes.from_json(draft_times), tokenizer)
        else:
            from minedraft_workers.device import pin
            from scripts.gpu.controlled.actors import make_actor
            from scripts.gpu.controlled.executor import make_executor

            owned = Device.parse(device).here()
            pin(owned)
            successors = token_map.target if role == Role.VERIFIER.value else token_map.draft
            sizes: dict[str, Any] = {"dtype": dtype, "num_blocks": num_blocks, "kernels": kernels}
            executor = make_executor(shape, SHAPES[shape], successors, owned, **sizes)
            actor = make_actor(Role(role), executor, tokenizer)
        code = asyncio.run(_serve(actor, address, Device.parse(device).here()))
    os._exit(code)  # the device thread may still be inside a forward


async def _serve(actor: Actor, address: Address, device: Device) -> int:
    from minedraft_workers.composition import prepare_actor
    from minedraft_workers.drafter import DrafterActor
    from minedraft_workers.server import serve_worker
    from minedraft_workers.servicer import drafter_handler, verifier_handler
    from minedraft_workers.verifier import VerifierActor

    runtime = WorkerRuntime(actor)
    if device.kind == "cuda" and isinstance(actor, DrafterActor | VerifierActor):
        ready = actor
        await runtime.prepare(lambda: prepare_actor(device, ready))
    if actor.info.role is Role.DRAFTER:
        handler = drafter_handler(cast(DraftingActor, actor), runtime)
    else:
        handler = verifier_handler(cast(VerifyingActor, actor), runtime)
    return await serve_worker(runtime, handler, address)


if __name__ == "__main__":
    main()
