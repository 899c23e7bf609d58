"""The paper's theorem (MineDraft, arXiv 2603.18016, Theorem 1), put right.

Its model: a verify takes V whatever happens; drafting for a time t makes drafts of which a share
f(t) = 1 - exp(-alpha t) is accepted. The time for a unit of accepted work is (t + V) / f(t) in turns and
max(t, V) / f(t) overlapped. Each method takes its own best t. With v = alpha V:

    overlapped: t = V, so T = V / (1 - exp(-v))
    in turns:   x = alpha t solves e^x = 1 + v + x, and then T = e^x / alpha

    ratio(v) = e^x (1 - e^-v) / v

The published claim, a ratio of at least 1.59 (37 % saved) for every v above a constant, does not hold: the ratio is 2
at most, where x = v, and falls to 1 as v goes to zero or to infinity. What holds is: the ratio is at least 1.59 if and
only if v lies in [0.188, 5.21], and overlapping never saves more than 50 %.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, expm1, log1p

PAPER_RATIO = 1.59
"""The ratio that the paper promises: 37 % of the time in turns is saved."""

_PRECISION = 1e-12


def best_turns(v: float) -> float:
    """Return x = alpha t of the best drafting time in turns: the root of e^x = 1 + v + x. v: above 0."""
    return _root(lambda x: exp(x) - 1 - v - x, 0.0, 1.0 + log1p(v) + v**0.5)


def ratio(v: float) -> float:
    """Return the time in turns by the time overlapped, each with its best drafting time. v: alpha V, above 0."""
    return exp(best_turns(v)) * -expm1(-v) / v


def saving(v: float) -> float:
    """Return the share of the time in turns that overlapping saves, 0 to 1/2."""
    return 1 - 1 / ratio(v)


def best_v() -> float:
    """Return the v with the largest ratio, 2: where the best drafting time in turns is V, so e^v = 1 + 2 v."""
    return _root(lambda v: exp(v) - 1 - 2 * v, 0.5, 3.0)


def ratio_range(least: float = PAPER_RATIO) -> tuple[float, float]:
    """Return the smallest and the largest v with at least this ratio, which is above 1 and below 2."""
    peak = best_v()
    return _root(lambda v: ratio(v) - least, 1e-6, peak), _root(lambda v: least - ratio(v), peak, 1e6)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that is negative at `low` and positive at `high` is zero, by bisection."""
    while high - low > _PRECISION * max(1.0, high):
        middle = (low + high) / 2
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
