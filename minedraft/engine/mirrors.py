"""The scheduler's mirrors of what a worker that has just joined keeps: its KV, and the requests that it knows."""

from __future__ import annotations

import logging

from minedraft.core.draft_book import DraftBook
from minedraft.core.feature_book import FeatureBook
from minedraft.core.ledger import KvLedger
from minedraft.core.scheduler import Scheduler
from minedraft.messages import WorkerInfo
from minedraft.types import Role

logger = logging.getLogger("minedraft.pipeline")


def make_ledger(info: WorkerInfo) -> KvLedger:
    """Return the scheduler's mirror of a worker's KV."""
    return KvLedger(info.num_blocks, info.block_size, info.max_model_len)


def make_book(info: WorkerInfo) -> DraftBook:
    """Return an empty book of the requests of a drafter, which knows none yet."""
    if info.feature_size:
        return FeatureBook(make_ledger(info), info.vocab_size, info.feature_layers, info.feature_size)
    return DraftBook(make_ledger(info), info.vocab_size, info.can_run_ahead)


def check_balance(role: Role, scheduler: Scheduler, ledger: KvLedger, num_free: int) -> None:
    """Log an error if blocks are missing on an idle worker: with no live request, every block must be free."""
    if not scheduler.requests and not ledger.pool.owners and num_free != ledger.num_blocks:
        logger.error("%s leaks KV: %d of %d blocks free while idle", role.value, num_free, ledger.num_blocks)
