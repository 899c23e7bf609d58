"""What happened in one run: its requests as the client saw them, and what the service counted meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from minedraft.output import ServiceStatus, WorkerState
from minedraft.types import Role


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One sample of one request.

    Attributes:
        pieces: (seconds since the start of the run, number of tokens) of each piece that had tokens.
        rounds: verify rounds that sampled for it.
    """

    pieces: tuple[tuple[float, int], ...]
    rounds: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(num for _, num in self.pieces)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request with all of its answers; seconds since the start of the run.

    Attributes:
        sent_s: when it was sent. end_s: when its last answer, or its error, was there.
        error: why it failed; "" if it did not. Metrics of latency leave it out then.
    """

    sent_s: float
    end_s: float
    prompt_tokens: int = 0
    answers: tuple[AnswerRecord, ...] = ()
    kind: str = "-"
    error: str = ""

    @property
    def first_token_s(self) -> float | None:
        """Of any of its answers; None if there was none."""
        return min((answer.pieces[0][0] for answer in self.answers if answer.pieces), default=None)

    @property
    def num_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self.answers)


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """Counts of the service that only grow, or their differences over a run; see `ServiceStatus`.

    Attributes:
        acceptances: (drafts verified, drafts accepted) of a row of a round -> number of such rows.
        verifier_s, drafter_s, both_s: in which the devices, or both of them, worked.
    """

    steps: int = 0
    wire_bytes: int = 0
    feature_bytes: int = 0
    decode_s: float = 0.0
    decode_tokens: int = 0
    exposed_drafting_s: float = 0.0
    verifier_s: float = 0.0
    drafter_s: float = 0.0
    both_s: float = 0.0
    acceptances: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, status: ServiceStatus) -> ServiceCounts:
        """Return the counts at one moment."""
        busy_s = {worker.role: worker.busy_s for worker in status.workers}
        return cls(
            status.steps,
            status.wire_bytes,
            status.feature_bytes,
            status.decode_s,
            status.decode_tokens,
            status.exposed_drafting_s,
            busy_s.get(Role.VERIFIER.value, 0.0),
            busy_s.get(Role.DRAFTER.value, 0.0),
            status.both_busy_s,
            {(entry.drafts, entry.accepted): entry.rows for entry in status.acceptances},
        )

    def since(self, before: ServiceCounts) -> ServiceCounts:
        """Return what was counted after `before`."""
        scalars = {
            each.name: getattr(self, each.name) - getattr(before, each.name)
            for each in fields(self)
            if each.name != "acceptances"
        }
        rows = {pair: count - before.acceptances.get(pair, 0) for pair, count in self.acceptances.items()}
        return ServiceCounts(**scalars, acceptances={pair: count for pair, count in rows.items() if count})


@dataclass(frozen=True, slots=True)
class SteadyRounds:
    """The service's own figures of its recent steady decode rounds; see `ServiceStatus`."""

    draft_ms: float = 0.0
    verify_ms: float = 0.0
    step_ms: float = 0.0
    overlap_efficiency: float = 0.0
    control_overhead_ms: float = 0.0

    @classmethod
    def of(cls, status: ServiceStatus) -> SteadyRounds:
        """Return the figures at the end of a run."""
        return cls(**{each.name: getattr(status, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of one configuration.

    Attributes:
        duration_s: from the first request sent to the last answer.
        max_batch_size: requests per batch (m).
        num_devices: GPUs or CPU cores that the configuration computes on.
    """

    requests: tuple[RequestRecord, ...]
    duration_s: float
    counts: ServiceCounts = ServiceCounts()
    steady: SteadyRounds = SteadyRounds()
    max_batch_size: int = 1
    num_devices: int = 1

    @property
    def completed(self) -> list[RequestRecord]:
        return [request for request in self.requests if not request.error]

    @property
    def answers(self) -> list[AnswerRecord]:
        """Of all requests that did not fail."""
        return [answer for request in self.completed for answer in request.answers]

    @property
    def num_output_tokens(self) -> int:
        return sum(request.num_tokens for request in self.completed)


def count_devices(workers: tuple[WorkerState, ...], *, has_drafts: bool) -> int:
    """Return on how many GPUs and CPU cores the workers of a configuration compute; a drafter that is not asked for
    drafts computes on none."""
    used: set[str] = set()
    for worker in workers:
        if worker.role == Role.VERIFIER.value or has_drafts:
            used |= _cores_of(worker.cores) or {worker.device}
    return max(len(used), 1)


def _cores_of(text: str) -> set[str]:
    """Return the names of the cores in a list like "0-3,8"."""
    cores: set[str] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores |= {f"cpu:{core}" for core in range(int(first), int(last or first) + 1)}
    return cores
