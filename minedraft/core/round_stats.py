"""Figures of recent rounds: overlap efficiency, control overhead, utilisation, acceptance. A pure observer.

A *step* is the time from one committed round to the next, whichever batch they are of; where a verify command had
several decode steps, it is their share of that time, and so are the other times. With two batches
in flight the verifier ideally goes from one to the other without a pause, so the ideal step is
max(t_draft, t_verify); when drafter and verifier take turns it is t_draft + t_verify.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median

from minedraft.core import events
from minedraft.messages import Timing
from minedraft.types import Batch

WINDOW_ROUNDS = 1024
_NO_TIME = Timing()


@dataclass(frozen=True, slots=True)
class RoundSample:
    """One committed round. Times in seconds, for each of its steps; `finished_s` on the scheduler's monotonic clock.

    is_steady: the batch went straight from its last round into this one, so that the step measures the
    system and not a lack of work. num_active: batches that had requests after the round.
    """

    batch: Batch
    finished_s: float
    step_s: float
    draft_s: float
    verify_s: float
    verifier_idle_s: float
    num_output_tokens: int
    num_active: int
    is_steady: bool
    is_prefill: bool
    num_drafted_rows: int = 0
    num_drafts: int = 0
    num_accepted: int = 0
    num_steps: int = 1


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """Means and medians over the steady rounds of a window; zeros when there were none.

    vsr (accepted / verified drafts) and mean_accepted_len (accepted drafts per span that had drafts) are over
    every round of the window. The `_ms` figures are milliseconds, the others ratios from 0 to 1.
    """

    num_rounds: int = 0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    step_ms: float = 0.0
    overlap_efficiency: float = 0.0
    control_overhead_ms: float = 0.0
    verifier_busy: float = 0.0
    drafter_busy: float = 0.0
    vsr: float = 0.0
    mean_accepted_len: float = 0.0


class RoundStats:
    """A window of recent rounds, which begins anew when mode or sizes change.

    Attributes:
        decode_s, decode_tokens: duration and output tokens of all rounds without prompt tokens before which no batch
            had waited for requests; they only grow.
    """

    def __init__(self, window: int = WINDOW_ROUNDS) -> None:
        self.samples: deque[RoundSample] = deque(maxlen=window)
        self.decode_s, self.decode_tokens = 0.0, 0
        self._last_finished_s: float | None = None
        self._drafted_ns: dict[Batch, int] = {}
        self._verified: dict[Batch, events.Verified] = {}
        self._has_waited = set(Batch)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.RoundCommitted():
                self._add(event, now_s)
            case events.Drafted() if not event.is_prefill:
                self._drafted_ns[event.batch] = self._drafted_ns.get(event.batch, 0) + event.timing.busy_ns
            case events.Verified():
                self._verified[event.batch] = event
            case events.RoundAbandoned():
                self._drafted_ns.pop(event.batch, None)
                self._verified.pop(event.batch, None)
            case events.LaneIdle():
                self._has_waited.add(event.batch)
            case events.ModeChanged():
                self.samples.clear()
                self._last_finished_s = None
                self._has_waited.update(Batch)

    def summary(self) -> RoundSummary:
        return summarise(self.samples)

    def acceptance(self, batch: Batch) -> RoundSummary:
        """Return the acceptance of a batch's rounds; the times are zeros."""
        return _acceptance([sample for sample in self.samples if sample.batch is batch])

    def tokens_per_s(self, now_s: float, window_s: float = 10.0) -> float:
        """Return the output tokens per second over the last `window_s` seconds."""
        recent = [s for s in self.samples if s.finished_s >= now_s - window_s]
        if not recent:
            return 0.0
        span_s = now_s - (recent[0].finished_s - recent[0].step_s * recent[0].num_steps)
        return sum(s.num_output_tokens for s in recent) / max(span_s, 1e-9)

    def _add(self, event: events.RoundCommitted, now_s: float) -> None:
        batch = event.batch
        last_s, self._last_finished_s = self._last_finished_s, now_s
        verified = self._verified.pop(batch, None)
        verify, num_steps = (_NO_TIME, 1) if verified is None else (verified.timing, verified.num_steps)
        num_drafts = num_accepted = 0
        for drafts, accepted_len in event.accepted:
            num_drafts += drafts
            num_accepted += accepted_len
        sample = RoundSample(
            batch,
            now_s,
            (now_s - last_s) / num_steps if last_s is not None else 0.0,
            self._drafted_ns.pop(batch, 0) / 1e9,
            verify.busy_ns / 1e9 / num_steps,
            verify.idle_ns / 1e9 / num_steps,
            event.num_output_tokens,
            event.num_active,
            batch not in self._has_waited and last_s is not None,
            event.is_prefill,
            len(event.accepted),
            num_drafts,
            num_accepted,
            num_steps,
        )
        self._has_waited.discard(batch)
        self.samples.append(sample)
        if sample.is_steady and not sample.is_prefill:
            self.decode_s += sample.step_s * num_steps
            self.decode_tokens += sample.num_output_tokens


def summarise(samples: Iterable[RoundSample]) -> RoundSummary:
    """Return the summary of the steady decode rounds among `samples`. Rounds with a prompt chunk, and rounds
    while fewer batches had requests, are left out: their times are not comparable."""
    samples = list(samples)
    acceptance = _acceptance(samples)
    steady = [s for s in samples if s.is_steady and not s.is_prefill]
    most_active = max((s.num_active for s in steady), default=0)
    steady = [s for s in steady if s.num_active == most_active]
    if not steady:
        return acceptance
    draft_s, verify_s = fmean(s.draft_s for s in steady), fmean(s.verify_s for s in steady)
    step_s = fmean(s.step_s for s in steady)
    return replace(
        acceptance,
        num_rounds=len(steady),
        draft_ms=median(s.draft_s for s in steady) * 1e3,
        verify_ms=median(s.verify_s for s in steady) * 1e3,
        step_ms=median(s.step_s for s in steady) * 1e3,
        overlap_efficiency=max(draft_s, verify_s) / max(step_s, 1e-9),
        control_overhead_ms=_control_overhead_s(steady) * 1e3,
        verifier_busy=verify_s / max(verify_s + fmean(s.verifier_idle_s for s in steady), 1e-9),
        drafter_busy=min(draft_s / max(step_s, 1e-9), 1.0),
    )


def _acceptance(samples: Sequence[RoundSample]) -> RoundSummary:
    """Return the acceptance of all `samples`; the times are zeros."""
    num_drafts, num_accepted = sum(s.num_drafts for s in samples), sum(s.num_accepted for s in samples)
    num_rows = sum(s.num_drafted_rows for s in samples)
    return RoundSummary(vsr=num_accepted / max(num_drafts, 1), mean_accepted_len=num_accepted / max(num_rows, 1))


def _control_overhead_s(steady: Sequence[RoundSample]) -> float:
    """Return the median step time beyond the longer of draft and verify, in seconds. It is taken over pairs
    of consecutive steps, because the steps of two batches alternate between short and long."""
    if len(steady) < 2:
        return steady[0].step_s - max(steady[0].draft_s, steady[0].verify_s)
    return median(
        (a.step_s + b.step_s - max(a.draft_s + b.draft_s, a.verify_s + b.verify_s)) / 2 for a, b in pairwise(steady)
    )
