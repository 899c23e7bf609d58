"""The number of drafts that gives the most tokens per second, by measured costs and acceptance. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minedraft.core.policy.forecast.conditions import Condition, Way
from minedraft.core.policy.forecast.cost_model import CostModel

_ALIKE = 0.97  # shallower drafts that are expected to give this part of the best rate are preferred
_HOPELESS = 0.75  # deeper drafts are not tried once their rate is below this part of the best one


@dataclass(frozen=True, slots=True)
class Goodput:
    """A depth of drafting and what it is expected to give.

    Attributes:
        depth: most drafts of a request in a round.
        least_survival: a draft is worth a row of the verify if the probability that it is accepted is at least this.
        num_drafts: drafts of one request in a round, on average.
        tokens_per_s: output of all requests in flight, with the time that their prompts take.
        period_s: seconds in which each of them has a round.
    """

    depth: int
    least_survival: float
    num_drafts: float
    tokens_per_s: float
    period_s: float = 0.0


def best_depth(
    costs: CostModel, way: Way, num_in_flight: int, survivals: Sequence[Sequence[float]], least_depth: int = 0
) -> Goodput:
    """Return the depth from `least_depth` on with the most tokens per second.

    Args:
        survivals: of some of the requests in flight, the probabilities that the first 1, 2 ... drafts are accepted.
    """
    first = _best(costs, way, num_in_flight, survivals, least_depth, 0.0)
    price = _row_price(costs, way, num_in_flight, first)
    if price <= 0:
        return first
    second = _best(costs, way, num_in_flight, survivals, least_depth, price)
    return max(first, second, key=lambda goodput: goodput.tokens_per_s)


def goodput_at(
    costs: CostModel,
    way: Way,
    num_in_flight: int,
    survivals: Sequence[Sequence[float]],
    depth: int,
    least_survival: float = 0.0,
) -> Goodput:
    """Return what one depth is expected to give."""
    return _best(costs, way, num_in_flight, [s[:depth] for s in survivals], depth, least_survival)


def _best(
    costs: CostModel,
    way: Way,
    num_in_flight: int,
    survivals: Sequence[Sequence[float]],
    least_depth: int,
    least_survival: float,
) -> Goodput:
    scale = num_in_flight / max(len(survivals), 1)
    tokens, drafts = float(num_in_flight), 0.0
    found: list[Goodput] = []
    best_rate = 0.0
    for depth in range(min(map(len, survivals), default=0) + 1):
        if depth:
            kept = [s[depth - 1] for s in survivals if s[depth - 1] >= least_survival]
            if not kept and depth > least_depth:
                break
            tokens += scale * sum(kept)
            drafts += scale * len(kept)
        if depth < least_depth:
            continue
        share = costs.drafted_share(way, num_in_flight, depth)
        period_s = costs.period_s(way, num_in_flight, share * drafts, depth)
        prompt_s = costs.prompt_s(way, depth > 0)
        rate = 1 / max(period_s / (num_in_flight + share * (tokens - num_in_flight)) + prompt_s, 1e-9)
        found.append(Goodput(depth, least_survival, share * drafts / num_in_flight, rate, period_s))
        best_rate = max(best_rate, rate)
        if rate < _HOPELESS * best_rate and depth > 1:  # a first draft costs more than a second
            break
    assert found, "least_depth is at most the length of the survivals"
    # What is known of deep drafts comes from the requests that accept many. A round that is as good with fewer of them
    # is shorter, and the requests that accept few have more of such rounds.
    return next(each for each in found if each.tokens_per_s >= (_ALIKE if each.depth else 1.0) * best_rate)


def _row_price(costs: CostModel, way: Way, num_in_flight: int, goodput: Goodput) -> float:
    """Return the tokens that could be made in the time that one more row of the verify takes."""
    if not goodput.depth:
        return 0.0
    condition, num_batches = way.condition(num_in_flight), way.num_batches(num_in_flight)
    num_requests = num_in_flight / num_batches
    rows = num_requests * (1 + goodput.num_drafts)
    verify_s = costs.verify_s(condition, rows)
    if condition is Condition.OVERLAPPED and verify_s < costs.beside_s(way, num_in_flight, goodput.depth):
        return 0.0  # the verifier waits for the drafter anyway
    step = max(num_requests / 2, 1.0)
    return goodput.tokens_per_s * (costs.verify_s(condition, rows + step) - verify_s) / step
