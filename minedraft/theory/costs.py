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

    def at(self, size: float) -> float:
        """Return the seconds at a size."""
        return self.base_s + self.slope_s * max(size - self.free, 0.0)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a round costs, in seconds.

    Attributes:
        draft: of one draft forward, by requests (the paper's d0 + d1 b).
        verify: of a verify, by rows: a request with k drafts has k + 1 (V0 + V1 rows).
        verify_wide: of a verify in mode ar, where the verifier may have the drafter's cores too; None: as `verify`.
        turns_overhead: of scheduler and wire in a round of one batch, from the end of a draft to the begin of its
            verify and from there to the next draft, by requests. A remote drafter's round trip is part of it.
        queued_overhead: from one command of a worker to its next where that waits already, as in ar and minedraft.
        collision: how much longer two forwards take at the same time, 0.4 being 40 %, if they do nothing but read
            from the memory that they share; 0 for devices with memory of their own.
        draft_kv_s, verify_kv_s: seconds that a cached token of a request adds to each forward.
    """

    draft: Cost
    verify: Cost
    verify_wide: Cost | None = None
    turns_overhead: Cost = Cost(0.0)
    queued_overhead: Cost = Cost(0.0)
    collision: float = 0.0
    draft_kv_s: float = 0.0
    verify_kv_s: float = 0.0

    def draft_s(self, num_requests: float, draft_len: int, context_len: float = 0.0) -> float:
        """Return the time of `draft_len` draft forwards in a row."""
        return draft_len * (self.draft.at(num_requests) + self.draft_kv_s * num_requests * context_len)

    def verify_s(self, num_requests: float, draft_len: int, context_len: float = 0.0) -> float:
        """Return the time of a verify of requests with `draft_len` drafts each."""
        return self.verify.at(num_requests * (draft_len + 1)) + self.verify_kv_s * num_requests * context_len

    def slowdown(self, num_requests: float, draft_len: int, context_len: float = 0.0) -> float:
        """Return how many times as long a forward takes while the other worker has one, too.

        Forwards collide where both read, so by the product of the shares of their time in which they do.
        """
        drafting, verifying = (
            self.draft_s(num_requests, draft_len, context_len),
            self.verify_s(num_requests, draft_len, context_len),
        )
        if not drafting or not verifying:
            return 1.0
        read = draft_len * self.draft.base_s / drafting * self.verify.base_s / verifying
        return 1 + self.collision * read

    def overlapped(self, num_requests: float, draft_len: int, context_len: float = 0.0) -> tuple[float, float]:
        """Return the times of a batch's drafting and of the other one's verify that begin together.

        With a slow-down c, the shorter one (S) takes c S; in that time S of the longer one (L) gets done, so that
        this one takes L + (c - 1) S.
        """
        draft_s = self.draft_s(num_requests, draft_len, context_len)
        verify_s = self.verify_s(num_requests, draft_len, context_len)
        lost_s = (self.slowdown(num_requests, draft_len, context_len) - 1) * min(draft_s, verify_s)
        return draft_s + lost_s, verify_s + lost_s


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
