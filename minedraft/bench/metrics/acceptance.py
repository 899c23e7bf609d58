"""Metrics of drafts. A row is one request in one round that had drafts."""

from __future__ import annotations

from minedraft.bench.metrics.record import RunRecord


def verified_drafts(run: RunRecord) -> int:
    """Draft tokens verified."""
    return sum(drafts * rows for (drafts, _), rows in run.counts.acceptances.items())


def accepted_drafts(run: RunRecord) -> int:
    """Draft tokens accepted."""
    return sum(accepted * rows for (_, accepted), rows in run.counts.acceptances.items())


def drafted_rows(run: RunRecord) -> int:
    """Rows that had drafts."""
    return sum(run.counts.acceptances.values())


def vsr(run: RunRecord) -> float:
    """Verification success rate: drafts accepted over drafts verified."""
    return accepted_drafts(run) / max(verified_drafts(run), 1)


def mean_accepted_len(run: RunRecord) -> float:
    """Drafts accepted over rows that had drafts; vLLM's and AIPerf's acceptance length is this plus 1."""
    return accepted_drafts(run) / max(drafted_rows(run), 1)


def accepted_len_histogram(run: RunRecord) -> list[int]:
    """Number of rows with 0, 1, 2 ... drafts accepted."""
    longest = max((drafts for drafts, _ in run.counts.acceptances), default=-1)
    return [
        sum(rows for (_, accepted), rows in run.counts.acceptances.items() if accepted == length)
        for length in range(longest + 1)
    ]


def acceptance_per_position(run: RunRecord) -> list[float]:
    """Share of all rows in which draft 1, 2 ... was accepted; as in vLLM, a row with fewer drafts counts as one that
    did not accept it."""
    longest = max((drafts for drafts, _ in run.counts.acceptances), default=0)
    return [
        sum(rows for (_, accepted), rows in run.counts.acceptances.items() if accepted > position)
        / max(drafted_rows(run), 1)
        for position in range(longest)
    ]


def conditional_acceptance(run: RunRecord) -> list[float]:
    """Acceptance of draft 1, 2 ... in the rows that had it and accepted all before it."""
    pairs = run.counts.acceptances.items()
    rates = []
    for position in range(max((drafts for drafts, _ in run.counts.acceptances), default=0)):
        reached = sum(rows for (drafts, accepted), rows in pairs if drafts > position and accepted >= position)
        rates.append(sum(rows for (_, accepted), rows in pairs if accepted > position) / max(reached, 1))
    return rates
