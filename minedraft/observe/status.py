"""The status that GetStatus shows: an observer of all events, and a snapshot of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from minedraft.carriers import Carrier
from minedraft.core import events
from minedraft.core.batches import BatchManager
from minedraft.core.counters import Counters
from minedraft.core.ledger import KvLedger
from minedraft.core.round_stats import RoundStats, RoundSummary
from minedraft.device import format_cores
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import MineDraftError
from minedraft.messages import LinkStats, WorkerInfo
from minedraft.observe.device_use import DeviceUse
from minedraft.observe.faults import FaultLog
from minedraft.output import AcceptanceState, BatchState, FaultState, ServiceStatus, SourceState, WorkerState
from minedraft.settings.choices import AUTO
from minedraft.settings.service import Settings
from minedraft.types import Batch, Role

_RECENT = ("vsr", "mean_accepted_len", "overlap_efficiency", "control_overhead_ms", "verify_ms", "draft_ms", "step_ms")


class StatusBoard:
    """All counts and measurements of one service process. Counts only grow, over every mode and every link
    to a worker; rates and times are of recent rounds in the present mode.

    Args:
        clock: monotonic seconds.

    Attributes:
        explain_mode: says why the present mode was chosen; set once there is a policy that chooses it.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.counters = Counters()
        self.rounds = RoundStats()
        self._faults = FaultLog()
        self._devices = DeviceUse()
        self._joins: Counter[Role] = Counter()
        self._settings = settings
        self._clock = clock
        self._started_s = clock()
        self.explain_mode: Callable[[], str] = lambda: ""
        self._errors: Counter[str] = Counter()
        self._workers: dict[Role, WorkerInfo] = {}  # the last one of each role
        self._lost: set[Role] = set()
        self.suspended = ""  # why drafting is, or is on trial after it was
        self._suspended_requests: set[int] = set()
        self._cores: dict[Role, tuple[int, ...]] = {}  # present ones

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        self.counters.observe(event, now_s)
        self.rounds.observe(event, now_s)
        self._faults.observe(event, now_s)
        self._devices.observe(event, now_s)
        match event:
            case events.WorkerJoined():
                self._workers[event.info.role] = event.info
                self._joins[event.info.role] += 1
                self._lost.discard(event.info.role)
                self._cores[event.info.role] = event.info.cores
                if event.info.role is Role.DRAFTER:
                    self.suspended = ""
                    self._suspended_requests.clear()
            case events.DraftingSuspended(request_id=None):
                self.suspended = event.cause
                self._suspended_requests.clear()
            case events.DraftingSuspended(request_id=int(request_id)):
                self._suspended_requests.add(request_id)
            case events.DraftingResumed(request_id=None):
                self.suspended = self.suspended if event.is_trial else ""
            case events.DraftingResumed(request_id=int(request_id)):
                self._suspended_requests.discard(request_id)
            case events.RequestEnded():
                self._suspended_requests.discard(event.request_id)
            case events.CoresChanged():
                self._cores[event.role] = event.cores
            case events.WorkerLeft():
                self._lost.add(event.role)

    def count_error(self, error: MineDraftError) -> None:
        """Count a call that failed."""
        self._errors[error.reason] += 1

    def status(self, state: str, pipeline: Pipeline | None) -> ServiceStatus:
        """Return a snapshot; without a pipeline (still starting) only settings, uptime and errors."""
        uptime_s = self._clock() - self._started_s
        if pipeline is None:
            return self._starting(state, uptime_s)
        scheduler, counters, summary = pipeline.scheduler, self.counters, self.rounds.summary()
        return ServiceStatus(
            state=state,
            mode=scheduler.limits.mode.value,
            draft_len=scheduler.limits.draft_len,
            max_model_len=min(scheduler.limits.max_model_len, scheduler.verifier_kv.capacity),
            max_batch_size=scheduler.limits.max_batch_size,
            num_waiting=len(scheduler.room.queue) + len(scheduler.room.paused),
            num_running=scheduler.batches.num_requests,
            batches=self._batch_states(scheduler.batches),
            workers=self._worker_states(pipeline, summary),
            **{name: getattr(summary, name) for name in _RECENT},
            tokens_per_s=self.rounds.tokens_per_s(self._clock()),
            output_tokens=counters.output_tokens,
            finished_requests=counters.finished,
            preemptions=counters.preemptions,
            stale_replies=counters.stale_proposals + sum(link.num_stale for link in self._links(pipeline)),
            wire_bytes=sum(link.wire_bytes for link in self._links(pipeline)),
            feature_bytes=counters.feature_bytes,
            steps=sum(counters.rounds.values()) + counters.further_steps,
            uptime_s=uptime_s,
            verified_drafts=counters.verified_drafts,
            accepted_drafts=counters.accepted_drafts,
            branches=scheduler.limits.num_branches,
            runs_ahead=counters.runs_ahead,
            used_runs=counters.used_runs,
            errors=dict(self._errors),
            worker_losses=_name_losses(counters),
            worker_rejoins=counters.rejoins,
            replays=counters.replays,
            sources=self._source_states(),
            suspended=self.suspended,
            num_suspended=len(self._suspended_requests),
            is_mode_auto=self._settings.mode == AUTO and not scheduler.limits.is_lent,
            is_draft_len_auto=self._settings.draft_len == AUTO and not scheduler.limits.is_lent,
            mode_reason="" if scheduler.limits.is_lent else self.explain_mode(),
            faults=dict(self._faults.counts),
            recent_faults=self._fault_states(),
            exposed_drafting_s=self._devices.exposed_drafting_s,
            both_busy_s=self._devices.both_busy_s,
            acceptances=tuple(AcceptanceState(*pair, rows) for pair, rows in sorted(counters.acceptances.items())),
            decode_s=self.rounds.decode_s,
            decode_tokens=self.rounds.decode_tokens,
            steps_per_command=scheduler.steps_per_command,
        )

    def _batch_states(self, batches: BatchManager) -> tuple[BatchState, ...]:
        return tuple([self._batch_state(batches, batch) for batch in batches.batches])

    def _batch_state(self, batches: BatchManager, batch: Batch) -> BatchState:
        members, acceptance = batches.members(batch), self.rounds.acceptance(batch)
        return BatchState(
            batch.name,
            len(members),
            self.counters.rounds[batch],
            num_tokens=sum([len(request.tokens) for request in members]),
            vsr=acceptance.vsr,
            mean_accepted_len=acceptance.mean_accepted_len,
        )

    def _fault_states(self) -> tuple[FaultState, ...]:
        now_s = self._clock()
        return tuple([FaultState(fault.cause, now_s - fault.at_s) for fault in self._faults.recent])

    def _source_states(self) -> tuple[SourceState, ...]:
        return tuple(
            SourceState(source.value, counts.rows, counts.verified, counts.accepted)
            for source, counts in self.counters.sources.items()
        )

    def _starting(self, state: str, uptime_s: float) -> ServiceStatus:
        settings = self._settings
        return ServiceStatus(
            state=state,
            mode=settings.first_mode.value,
            draft_len=settings.max_draft_len if settings.needs_drafter else 0,
            max_batch_size=settings.max_in_flight // settings.first_mode.num_batches,
            uptime_s=uptime_s,
            errors=dict(self._errors),
            faults=dict(self._faults.counts),
            is_mode_auto=settings.mode == AUTO,
            is_draft_len_auto=settings.draft_len == AUTO,
        )

    def _links(self, pipeline: Pipeline) -> Sequence[LinkStats]:
        """Return the traffic of all lost links together, and of each live link."""
        drafter = pipeline.drafter
        live = [pipeline.verifier.stats] if pipeline.has_verifier else []
        return [self.counters.past_links, *live, *([drafter.stats] if drafter is not None else [])]

    def _worker_states(self, pipeline: Pipeline, summary: RoundSummary) -> tuple[WorkerState, ...]:
        scheduler, book = pipeline.scheduler, pipeline.scheduler.book
        figures: dict[Role, tuple[KvLedger | None, float, float]] = {
            Role.DRAFTER: (book.kv if book is not None else None, summary.drafter_busy, summary.draft_ms),
            Role.VERIFIER: (scheduler.verifier_kv, summary.verifier_busy, summary.verify_ms),
        }
        carrier = pipeline.drafter.stats.carrier if pipeline.drafter is not None else Carrier.INLINE  # of both
        num_open = {Role.VERIFIER: pipeline.verifier.stats.num_open, Role.DRAFTER: 0}
        if pipeline.drafter is not None:
            num_open[Role.DRAFTER] = pipeline.drafter.stats.num_open
        lost = self._lost | ({Role.VERIFIER} if pipeline.failure is not None else set())
        return tuple(
            replace(
                _worker_state(self._workers[role], role not in lost, *figures[role]),
                cores=format_cores(self._cores[role]),
                carrier=carrier.value,
                num_queued=num_open[role] if role not in lost else 0,
                restarts=self._joins[role] - 1,
                busy_s=self._devices.busy_s[role],
            )
            for role in figures
            if role in self._workers
        )


def _name_losses(counters: Counters) -> dict[str, int]:
    return {f"{role.value}:{kind.value}": count for (role, kind), count in counters.losses.items()}


def _worker_state(info: WorkerInfo, is_ready: bool, kv: KvLedger | None, busy: float, step_ms: float) -> WorkerState:
    return WorkerState(
        role=info.role.value,
        state="ready" if is_ready else "lost",
        model=info.model_name,
        device=info.device,
        dtype=info.dtype,
        epoch=info.epoch,
        num_blocks=info.num_blocks,
        num_free_blocks=kv.num_free if kv is not None else 0,
        block_size=info.block_size,
        busy=busy,
        step_ms=step_ms,
        draft_method=info.draft_method.value if info.draft_method else "",
        kernels=info.kernels,
        is_batch_invariant=info.is_batch_invariant,
    )
