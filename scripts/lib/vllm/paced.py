"""A drafter that can be made slow while it runs: a slower device, simulated with the real draft model.

`python -m scripts.lib.vllm.paced --times FILE drafter FLAGS` takes the flags of `minedraft-worker drafter`. It proposes
what that one does, and then sleeps until the time that the file gives for such a draft is over.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import click

from minedraft.address import Address
from minedraft.messages import DraftCommand, Proposal, WorkerInfo
from minedraft.process.claim import ListenClaim
from minedraft.process.entry import takes_parent
from minedraft.process.parent import exit_with_parent
from minedraft.settings.flags import settings_flags
from minedraft.settings.loading import load_worker_settings
from minedraft.settings.worker import WorkerSettings
from minedraft_workers.composition import Plan, load_actors
from minedraft_workers.device import pin
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.server import serve_worker
from minedraft_workers.servicer import drafter_handler
from scripts.gpu.controlled.sleeping import DraftTimes


class Pace:
    """The times in a file, JSON as of `DraftTimes.from_json`, as it is at present; without the file none.

    Writers replace the file, so that it is whole whenever it is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed_ns = 0
        self._times: DraftTimes | None = None

    def seconds(self, num_requests: int, draft_len: int) -> float:
        """Return how long a draft takes at least."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0.0
        if self._times is None or changed_ns != self._changed_ns:
            self._times, self._changed_ns = DraftTimes.from_json(self._path.read_text(encoding="utf-8")), changed_ns
        return self._times.seconds(num_requests, draft_len)


class PacedDrafter:
    """A drafter whose drafts take as long as `pace` says, or longer if the model does. Prompts are cached at the
    model's own pace."""

    def __init__(self, inner: DrafterActor, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    @property
    def info(self) -> WorkerInfo:
        return self._inner.info

    @property
    def num_free_blocks(self) -> int:
        return self._inner.num_free_blocks

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        """Implements `DraftingActor`."""
        start_s = time.monotonic()
        work = self._inner.draft(command)
        lens = [span.draft_len for span in command.spans if span.draft_len]
        until_s = start_s + self._pace.seconds(len(lens), max(lens, default=0))
        time.sleep(max(until_s - time.monotonic(), 0.0))
        return work

    def prefill(self, command: DraftCommand) -> Work[Proposal]:
        return self._inner.prefill(command)

    def release(self, request_ids: Sequence[int]) -> None:
        self._inner.release(request_ids)

    def reset(self, target_vocab_size: int) -> None:
        self._inner.reset(target_vocab_size)


async def _serve(address: Address, actors: Sequence[PacedDrafter]) -> int:
    first, *others = actors
    runtime = WorkerRuntime(first, others=others)
    handler = drafter_handler(first, runtime, others=[(each, None) for each in others])
    return await serve_worker(runtime, handler, address)


@click.command()
@settings_flags(WorkerSettings)
@click.option("--times", required=True, type=click.Path(path_type=Path), help="File with {requests: {drafts: ms}}.")
@takes_parent
def main(times: Path, parent_pid: int | None, **flags: object) -> None:
    """Run a drafter that sleeps."""
    if parent_pid is not None:
        exit_with_parent(parent_pid)
    settings = load_worker_settings(flags)
    plan = Plan.make(settings)
    with ListenClaim(settings.listen_address):
        pin(plan.device)
        actors = load_actors(plan, [None] * settings.sessions)
        paced = [PacedDrafter(each, Pace(times)) for each in actors if isinstance(each, DrafterActor)]
        code = asyncio.run(_serve(settings.listen_address, paced))
    os._exit(code)  # the device thread may still be inside a forward


if __name__ == "__main__":
    main()
