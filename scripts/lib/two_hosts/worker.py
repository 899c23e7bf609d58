"""A worker whose forward takes a given time, as on a device of its own, at an address with TLS.

`python -m scripts.lib.two_hosts.worker drafter|verifier --listen ADDR --tokenizer DIR --times JSON [--worker-tls DIR]`
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import click

from minedraft.address import Address
from minedraft.messages import DraftCommand, Proposal, Verdict, VerifyCommand
from minedraft.process.claim import ListenClaim
from minedraft.security.tls import worker_server_tls
from minedraft.types import Role
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.server import serve_worker
from minedraft_workers.servicer import drafter_handler, verifier_handler
from scripts.lib.null_worker import NullActor


class TimedActor(NullActor):
    """Answers as a null worker, after the time that a forward of so many requests takes.

    Args:
        times: number of requests -> milliseconds; that of the next larger number counts.
    """

    def __init__(self, role: Role, tokenizer: Path, times: dict[int, float]) -> None:
        super().__init__(role, tokenizer)
        self._times = times

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        self._sleep(sum(span.draft_len > 0 for span in command.spans))
        return super().draft(command)

    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        self._sleep(len(command.spans))
        return super().verify(command)

    def _sleep(self, num_requests: int) -> None:
        if num_requests:
            time.sleep(min(ms for size, ms in self._times.items() if size >= num_requests) / 1e3)


async def _serve(actor: TimedActor, address: Address, tls: Path | None) -> int:
    runtime = WorkerRuntime(actor)
    handler = drafter_handler(actor, runtime) if actor.info.role is Role.DRAFTER else verifier_handler(actor, runtime)
    return await serve_worker(runtime, handler, address, tls=worker_server_tls(tls, address))


@click.command()
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.option("--listen", required=True, metavar="ADDR", help="Address to serve the scheduler on.")
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path), help="Folder of the tokenizer.")
@click.option("--times", required=True, metavar="JSON", help="Milliseconds of a forward by number of requests.")
@click.option("--worker-tls", type=click.Path(path_type=Path), default=None, help="Folder of certificates.")
def main(role: str, listen: str, tokenizer: Path, times: str, worker_tls: Path | None) -> None:
    """Run a worker whose forward takes a given time."""
    address = Address.parse(listen, "listen")
    actor = TimedActor(Role(role), tokenizer, {int(size): float(ms) for size, ms in json.loads(times).items()})
    with ListenClaim(address):
        code = asyncio.run(_serve(actor, address, worker_tls))
    os._exit(code)


if __name__ == "__main__":
    main()
