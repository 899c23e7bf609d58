"""Which cores the verifier computes on, by mode. Pure."""

from __future__ import annotations

from minedraft.messages import WorkerInfo
from minedraft.types import Mode


def verifier_cores(mode: Mode, verifier: WorkerInfo) -> tuple[int, ...]:
    """Return the verifier's cores in a mode; empty for a worker whose cores are not numbered.

    Without drafts the drafter sleeps, so the verifier has all that it may have; otherwise each has its own.
    """
    return verifier.cores if mode.has_drafts or not verifier.max_cores else verifier.max_cores
