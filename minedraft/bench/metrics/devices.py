"""Metrics of the two devices. At any moment of a run a device is busy (it executes a command), waiting (it does not,
and the other one does: what it needs is not there yet) or idle (neither does: the scheduler, the network, the client,
or no request); the three shares add up to 1."""

from __future__ import annotations

from minedraft.bench.metrics.record import RunRecord

_LEAST_S = 1e-9


def verifier_busy(run: RunRecord) -> float:
    """Share of the run in which the verifier's device executes a command."""
    return run.counts.verifier_s / max(run.duration_s, _LEAST_S)


def verifier_waiting(run: RunRecord) -> float:
    """Share of the run in which only the drafter's device executes a command."""
    return max(run.counts.drafter_s - run.counts.both_s, 0.0) / max(run.duration_s, _LEAST_S)


def drafter_busy(run: RunRecord) -> float:
    """Share of the run in which the drafter's device executes a command."""
    return run.counts.drafter_s / max(run.duration_s, _LEAST_S)


def drafter_waiting(run: RunRecord) -> float:
    """Share of the run in which only the verifier's device executes a command."""
    return max(run.counts.verifier_s - run.counts.both_s, 0.0) / max(run.duration_s, _LEAST_S)


def devices_idle(run: RunRecord) -> float:
    """Share of the run in which neither device executes a command: the idle share of each."""
    counts = run.counts
    return max(1 - (counts.verifier_s + counts.drafter_s - counts.both_s) / max(run.duration_s, _LEAST_S), 0.0)


def exposed_drafting_s(run: RunRecord) -> float:
    """Seconds of the run in which the verifier was idle while the drafter drafted (prompts aside): drafting that
    overlapping is to hide."""
    return run.counts.exposed_drafting_s


def overlap_efficiency(run: RunRecord) -> float:
    """Mean of max(draft, verify) over the mean step, of the recent steady decode rounds: 1 if overlapping is
    perfect; (taking turns) max / (draft + verify)."""
    return run.steady.overlap_efficiency


def draft_ms(run: RunRecord) -> float:
    """Median busy time of the drafts of a round, of the recent steady decode rounds."""
    return run.steady.draft_ms


def verify_ms(run: RunRecord) -> float:
    """Median busy time of a verify, of the recent steady decode rounds."""
    return run.steady.verify_ms


def step_ms(run: RunRecord) -> float:
    """Median time from one committed round to the next, of whichever batch, of the recent steady decode rounds."""
    return run.steady.step_ms


def control_overhead_ms(run: RunRecord) -> float:
    """Median of step less max(draft, verify), of the recent steady decode rounds; taking turns, the shorter of both
    is in it."""
    return run.steady.control_overhead_ms


def wire_bytes_per_step(run: RunRecord) -> float:
    """Bytes between scheduler and workers, both ways, over committed rounds."""
    return run.counts.wire_bytes / max(run.counts.steps, 1)


def feature_bytes_per_step(run: RunRecord) -> float:
    """Bytes of the target's features for the drafter, whatever carries them, over committed rounds."""
    return run.counts.feature_bytes / max(run.counts.steps, 1)
