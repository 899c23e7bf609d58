"""Which cores each worker computes on, by mode. Pure."""

from __future__ import annotations

from minedraft.messages import WorkerInfo
from minedraft.types import Mode


def worker_cores(mode: Mode, worker: WorkerInfo) -> tuple[int, ...]:
    """Return a worker's cores in a mode; empty for a worker whose cores are not numbered.

    Where one worker computes while the other one waits, each has all the cores that it may have: in `ar` the drafter
    sleeps, and in `sd` they take turns. Where both compute at once, each has its own.
    """
    return worker.max_cores if mode.takes_turns and worker.max_cores else worker.cores
