"""The time of a forward by its size, and how many tokens a round gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """A time that grows with a size, once that is large: `base_s + slope_s * max(size - free, 0)`, in seconds.

    A forward reads all weights however few rows it has; only where there are so many rows that computing takes
    longer than reading does each of them cost time (the roofline model). `free` is that number of rows.
    """

    base_s: float
    slope_s: float = 0.0
    free: float = 0.0

    def at(self, size: float, contention: float = 1.0) -> float:
        """Return the seconds at a size.

        Args:
            contention: how many times as long reading takes, because others read from the same memory.
        """
        return contention * self.base_s + self.slope_s * max(size - self.free, 0.0)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a round costs, in seconds.

    Attributes:
        draft: of one draft forward, by requests (the paper's d0 + d1 b).
        verify: of a verify, by rows: a request with k drafts has k + 1 (V0 + V1 rows).
        verify_wide: of a verify in mode ar, where the verifier may have the drafter's cores too; None: as `verify`.
        turns_overhead: of scheduler and wire in a round of sd, in which each worker waits for the other, by requests.
        queued_overhead: the same where a worker's next command waits when it ends one, as in ar and minedraft.
        contention: how many times as long reading weights takes while both workers do so, as on cores that share
            memory; 1 for devices with memory of their own.
    """

    draft: Cost
    verify: Cost
    verify_wide: Cost | None = None
    turns_overhead: Cost = Cost(0.0)
    queued_overhead: Cost = Cost(0.0)
    contention: float = 1.0

    def draft_s(self, num_requests: float, draft_len: int, *, is_overlapped: bool = False) -> float:
        """Return the time of `draft_len` draft forwards in a row."""
        return draft_len * self.draft.at(num_requests, self.contention if is_overlapped else 1.0)

    def verify_s(self, num_requests: float, draft_len: int, *, is_overlapped: bool = False) -> float:
        """Return the time of a verify of requests with `draft_len` drafts each."""
        return self.verify.at(num_requests * (draft_len + 1), self.contention if is_overlapped else 1.0)


def tokens_per_round(rates: Sequence[float]) -> float:
    """Return the expected tokens of a request's round: accepted drafts and one more.

    Args:
        rates: the probability that draft 1, 2 ... is accepted once those before it are. With k equal rates a this is
            (1 - a^(k+1)) / (1 - a) (Leviathan et al. 2023, equation 1).
    """
    tokens, survival = 1.0, 1.0
    for rate in rates:
        survival *= rate
        tokens += survival
    return tokens


def accepted_lens(rates: Sequence[float]) -> list[float]:
    """Return the probabilities that 0, 1 ... k drafts are accepted."""
    survivals = [1.0]
    for rate in rates:
        survivals.append(survivals[-1] * rate)
    ends = [*survivals[1:], 0.0]
    return [survival - end for survival, end in zip(survivals, ends, strict=True)]
