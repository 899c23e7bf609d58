"""What GetStatus shows: counts of errors, and the pipeline's counters and rates put together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from minedraft.config import Settings
from minedraft.core.round_stats import RoundSummary
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import MineDraftError
from minedraft.output import BatchState, ServiceStatus, WorkerState
from minedraft.types import Batch, WorkerInfo


class Metrics:
    """Counters of one service process.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._started_s = clock()
        self._errors: Counter[str] = Counter()

    def count_error(self, error: MineDraftError) -> None:
        self._errors[error.reason] += 1

    def status(self, state: str, pipeline: Pipeline | None) -> ServiceStatus:
        """A snapshot; without a pipeline (still starting) only what is known then."""
        uptime_s = self._clock() - self._started_s
        if pipeline is None:
            settings = self._settings
            return ServiceStatus(
                state=state,
                mode=settings.mode.value,
                draft_len=settings.draft_len,
                max_batch_size=settings.max_batch_size,
                uptime_s=uptime_s,
                errors=dict(self._errors),
            )
        scheduler, counters = pipeline.scheduler, pipeline.scheduler.counters
        summary = pipeline.stats.summary()
        links = [link for link in (pipeline.drafter, pipeline.verifier) if link is not None]
        return ServiceStatus(
            state=state,
            mode=scheduler.limits.mode.value,
            draft_len=scheduler.limits.draft_len,
            max_batch_size=scheduler.limits.max_batch_size,
            num_waiting=len(scheduler.waiting),
            num_running=scheduler.batches.num_requests,
            batches=tuple(
                BatchState(
                    name=batch.name,
                    num_requests=len(scheduler.batches.members(batch)),
                    rounds=counters.rounds[batch],
                )
                for batch in scheduler.batches.batches
            ),
            workers=self._workers(pipeline, summary),
            vsr=_ratio(counters.accepted_drafts, counters.verified_drafts),
            mean_accepted_len=_ratio(counters.accepted_drafts, counters.drafted_rows),
            overlap_efficiency=summary.overlap_efficiency,
            control_overhead_ms=summary.control_overhead_ms,
            tokens_per_s=pipeline.stats.tokens_per_s(self._clock()),
            output_tokens=counters.output_tokens,
            finished_requests=counters.finished,
            preemptions=counters.preemptions,
            stale_replies=counters.stale_proposals + sum(getattr(link, "num_stale", 0) for link in links),
            wire_bytes=sum(getattr(link, "wire_bytes", 0) for link in links),
            steps=sum(counters.rounds[batch] for batch in Batch),
            uptime_s=uptime_s,
            verify_ms=summary.verify_ms,
            draft_ms=summary.draft_ms,
            step_ms=summary.step_ms,
            errors=dict(self._errors),
        )

    def _workers(self, pipeline: Pipeline, summary: RoundSummary) -> tuple[WorkerState, ...]:
        scheduler = pipeline.scheduler
        workers: list[WorkerState] = []
        if pipeline.drafter_info is not None:
            num_free = scheduler.book.kv.num_free if scheduler.book is not None else 0
            is_ready = pipeline.drafter is not None
            workers.append(_worker(pipeline.drafter_info, is_ready, num_free, summary.drafter_busy, summary.draft_ms))
        workers.append(
            _worker(
                pipeline.verifier.info,
                pipeline.failure is None,
                scheduler.verifier_kv.num_free,
                summary.verifier_busy,
                summary.verify_ms,
            )
        )
        return tuple(workers)


def _worker(info: WorkerInfo, is_ready: bool, num_free: int, busy: float, step_ms: float) -> WorkerState:
    return WorkerState(
        role=info.role.value,
        state="ready" if is_ready else "lost",
        model=info.model_name,
        device=info.device,
        dtype=info.dtype,
        epoch=info.epoch,
        num_blocks=info.num_blocks,
        num_free_blocks=num_free,
        block_size=info.block_size,
        busy=busy,
        step_ms=step_ms,
        draft_method=info.draft_method.value if info.draft_method else "",
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
