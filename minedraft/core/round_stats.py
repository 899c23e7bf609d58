"""What recent rounds took: overlap efficiency, control overhead, verifier utilisation. Pure.

A *step* is the time between the verify of one round and the verify of the next, of whatever batch:
with two batches in flight the verifier ideally goes from one to the other without a pause, so the
ideal step is max(t_draft, t_verify); taking turns it is t_draft + t_verify.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from minedraft.types import Batch, Timing

WINDOW_ROUNDS = 1024


@dataclass(frozen=True, slots=True)
class RoundSample:
    """One committed round. Times in seconds; `finished_s` on the scheduler's monotonic clock.

    `is_steady`: the batch went straight from its last round into this one, so the step before it
    shows the machinery and not a lack of work. `num_active`: batches that had requests after it.
    """

    batch: Batch
    finished_s: float
    step_s: float
    draft_s: float
    verify_s: float
    verifier_idle_s: float
    num_requests: int
    num_output_tokens: int
    num_active: int
    is_steady: bool
    is_prefill: bool


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """Means and medians over the steady rounds of a window; zeros when there were none."""

    num_rounds: int = 0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    step_ms: float = 0.0
    overlap_efficiency: float = 0.0
    control_overhead_ms: float = 0.0
    verifier_busy: float = 0.0
    drafter_busy: float = 0.0


class RoundStats:
    """A window of recent rounds."""

    def __init__(self, window: int = WINDOW_ROUNDS) -> None:
        self.samples: deque[RoundSample] = deque(maxlen=window)
        self._last_finished_s: float | None = None

    def record(
        self,
        batch: Batch,
        draft: Timing | None,
        verify: Timing,
        *,
        now_s: float,
        num_requests: int,
        num_output_tokens: int,
        num_active: int,
        is_steady: bool,
        is_prefill: bool,
    ) -> RoundSample:
        last_s, self._last_finished_s = self._last_finished_s, now_s
        sample = RoundSample(
            batch=batch,
            finished_s=now_s,
            step_s=now_s - last_s if last_s is not None else 0.0,
            draft_s=draft.busy_ns / 1e9 if draft is not None else 0.0,
            verify_s=verify.busy_ns / 1e9,
            verifier_idle_s=verify.idle_ns / 1e9,
            num_requests=num_requests,
            num_output_tokens=num_output_tokens,
            num_active=num_active,
            is_steady=is_steady and last_s is not None,
            is_prefill=is_prefill,
        )
        self.samples.append(sample)
        return sample

    def summary(self) -> RoundSummary:
        return summarise(self.samples)

    def tokens_per_s(self, now_s: float, window_s: float = 10.0) -> float:
        recent = [s for s in self.samples if s.finished_s >= now_s - window_s]
        if not recent:
            return 0.0
        span_s = now_s - (recent[0].finished_s - recent[0].step_s)
        return sum(s.num_output_tokens for s in recent) / max(span_s, 1e-9)


def summarise(samples: Iterable[RoundSample]) -> RoundSummary:
    """Summary of the steady decode rounds among `samples`. Left out are rounds that carried a prompt
    chunk and the tail where fewer batches had requests: their times are of another kind."""
    steady = [s for s in samples if s.is_steady and not s.is_prefill]
    most_active = max((s.num_active for s in steady), default=0)
    steady = [s for s in steady if s.num_active == most_active]
    if not steady:
        return RoundSummary()
    draft_s, verify_s = fmean(s.draft_s for s in steady), fmean(s.verify_s for s in steady)
    step_s = fmean(s.step_s for s in steady)
    return RoundSummary(
        num_rounds=len(steady),
        draft_ms=median(s.draft_s for s in steady) * 1e3,
        verify_ms=median(s.verify_s for s in steady) * 1e3,
        step_ms=median(s.step_s for s in steady) * 1e3,
        overlap_efficiency=max(draft_s, verify_s) / max(step_s, 1e-9),
        control_overhead_ms=_control_overhead_s(steady) * 1e3,
        verifier_busy=verify_s / max(verify_s + fmean(s.verifier_idle_s for s in steady), 1e-9),
        drafter_busy=min(draft_s / max(step_s, 1e-9), 1.0),
    )


def _control_overhead_s(steady: Sequence[RoundSample]) -> float:
    """Median over pairs of consecutive steps (one of each batch: single steps alternate short and
    long) of the step time beyond the longer of draft and verify."""
    if len(steady) < 2:
        return steady[0].step_s - max(steady[0].draft_s, steady[0].verify_s)
    return median(
        (a.step_s + b.step_s - max(a.draft_s + b.draft_s, a.verify_s + b.verify_s)) / 2 for a, b in pairwise(steady)
    )
