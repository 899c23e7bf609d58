"""Fits costs and acceptance to measured rounds, by least squares of relative errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from minedraft.theory.costs import Cost, Costs
from minedraft.types import Mode

_KNEES = 12
"""Knees to try between two measured sizes."""
_FEWEST_SIZES = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """Typical times of the rounds of one mode at one load. Times in seconds.

    Attributes:
        num_requests: of one batch.
        draft_len: drafts per request; 0 in ar.
        step_s: from one committed round to the next.
    """

    mode: Mode
    num_requests: float
    draft_len: int
    draft_s: float
    verify_s: float
    step_s: float

    @property
    def num_rows(self) -> float:
        """Rows of a verify."""
        return self.num_requests * (self.draft_len + 1)


def fit_costs(rounds: Sequence[Measured]) -> Costs:
    """Return the costs that explain measured rounds best.

    The costs of a worker alone are fitted to the rounds of `sd`, or, if there are none, to all; the rounds of
    `minedraft` tell how much two forwards at the same time slow each other down, and those of `ar` what a verify takes
    there, and what a worker loses between two commands.
    """
    turns = [r for r in rounds if r.mode is Mode.SD]
    overlapped = [r for r in rounds if r.mode is Mode.MINEDRAFT]
    queued = [r for r in rounds if r.mode is Mode.AR] or overlapped
    alone = turns or list(rounds)
    draft = fit_cost((r.num_requests, r.draft_s / r.draft_len) for r in alone if r.draft_len)
    verify = fit_cost((r.num_rows, r.verify_s) for r in alone)
    plain = [(r.num_rows, r.verify_s) for r in rounds if r.mode is Mode.AR]
    return Costs(
        draft,
        verify,
        fit_cost(plain) if plain else None,
        _fit_overhead([(r.num_requests, r.step_s - r.draft_s - r.verify_s) for r in turns]),
        _fit_overhead([(r.num_requests, r.step_s - max(r.draft_s, r.verify_s)) for r in queued]),
        _fit_collision(draft, verify, overlapped),
    )


def fit_cost(points: Iterable[tuple[float, float]]) -> Cost:
    """Return the cost with the least squares of relative errors over (size, seconds)."""
    pairs = sorted((size, seconds) for size, seconds in points if seconds > 0)
    if not pairs:
        return Cost(0.0)
    sizes = sorted({size for size, _ in pairs})
    costs = [Cost(_mean(pairs, 0.0))]
    # The knee may lie between two sizes; three sizes would fit any knee.
    steps = pairwise(sizes if len(sizes) > _FEWEST_SIZES else [])
    knees = [a + (b - a) * i / _KNEES for a, b in steps for i in range(_KNEES)]
    for free in [0.0, *knees]:
        bent = [(max(size - free, 0.0), seconds) for size, seconds in pairs]
        base_s, slope_s = _line(bent)
        if base_s >= 0 and slope_s >= 0:
            costs.append(Cost(base_s, slope_s, free))
    return min(costs, key=lambda cost: sum((cost.at(size) / seconds - 1) ** 2 for size, seconds in pairs))


def rate_of(mean_tokens: float, draft_len: int) -> float:
    """Return the acceptance, the same for each draft, with which rounds of `draft_len` drafts give `mean_tokens`
    tokens: the inverse of `tokens_per_round`, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if sum(middle**i for i in range(draft_len + 1)) < mean_tokens:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return base and slope of the line through (x, seconds), each pair weighted by 1 / seconds^2."""
    weights = [1 / seconds**2 for _, seconds in pairs]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, pairs, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, pairs, strict=True)) / total
    square = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, pairs, strict=True))
    if not square:
        return mean_y, 0.0
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, pairs, strict=True)) / square
    return mean_y - slope * mean_x, slope


def _mean(pairs: Sequence[tuple[float, float]], least: float) -> float:
    """Return the constant with the least squares of relative errors."""
    weights = [1 / seconds**2 for _, seconds in pairs]
    return max(sum(w * y for w, (_, y) in zip(weights, pairs, strict=True)) / sum(weights), least)


def _fit_overhead(points: Sequence[tuple[float, float]]) -> Cost:
    """Return a cost through small and noisy numbers, of which some may be negative."""
    if not points:
        return Cost(0.0)
    base_s, slope_s = _line([(size, seconds) for size, seconds in points if seconds > 0] or [(1.0, 1e-9)])
    if base_s < 0 or slope_s < 0:
        base_s, slope_s = max(median(seconds for _, seconds in points), 0.0), 0.0
    return Cost(base_s, slope_s)


def _fit_collision(draft: Cost, verify: Cost, overlapped: Sequence[Measured]) -> float:
    """Return by how much two forwards that only read slow each other down: the best of many values."""
    rounds = [r for r in overlapped if r.draft_len and r.draft_s > 0 and r.verify_s > 0]

    def error(collision: float) -> float:
        total, costs = 0.0, Costs(draft, verify, collision=collision)
        for r in rounds:
            draft_s, verify_s = costs.overlapped(r.num_requests, r.draft_len)
            total += (draft_s / r.draft_s - 1) ** 2 + (verify_s / r.verify_s - 1) ** 2
        return total

    return min((i / 100 for i in range(301)), key=error)
