"""When overlapping wins at equal requests in flight, and from where on.

With n requests in flight, a round in turns takes D + V + r: drafting, verifying, and the messages between. Overlapped,
two halves, each of which takes D', V' and r', have their rounds in the longest of 2 D', 2 V' and D' + V' + r'. What a
forward of the whole does not share with those of its halves is lost by halving: u_D = 2 D' - D, and u_V = 2 V' - V.
For a time that grows with the requests from a fixed part on, it is this part: k d0, and V0. So overlapping wins if and
only if

    u_D < V + r                  the verify hides what halving the drafting loses,
    u_V < D + r                  the drafting hides what halving the verify loses,
    D' + V' + r' < D + V + r     something is shorter for half the requests.

By the last one it never wins where forwards take the same time whatever their size. By the second one, it takes a
verify whose fixed part is small beside its rows (bound by computing) or its keys and values, or drafting that takes
long: many requests, long contexts, a slow drafter, or one that is far away (r). Workers with memory of their own are
assumed, and no time between commands that wait.
"""

from __future__ import annotations

from math import inf

from minedraft.theory.costs import Cost, Costs


def unsaved(cost: Cost, size: float) -> float:
    """Return what two forwards of half a size take longer than one of the whole; the fixed part, if none is free."""
    return 2 * cost.at(size / 2) - cost.at(size)


def wins_overlapped(costs: Costs, num_in_flight: float, draft_len: int, context_len: float = 0.0) -> bool:
    """Return whether overlapping is faster than taking turns, by the conditions above."""
    draft_s, verify_s = (cost(num_in_flight, draft_len, context_len) for cost in (costs.draft_s, costs.verify_s))
    draft_lost_s = draft_len * unsaved(costs.draft, num_in_flight)
    verify_lost_s = unsaved(costs.verify, num_in_flight * (draft_len + 1))
    away_s, half_away_s = (costs.turns_overhead.at(size) for size in (num_in_flight, num_in_flight / 2))
    half_s = (draft_s + draft_lost_s + verify_s + verify_lost_s) / 2 + half_away_s
    hides = draft_lost_s < verify_s + away_s and verify_lost_s < draft_s + away_s
    return hides and half_s < draft_s + verify_s + away_s


def least_in_flight(costs: Costs, draft_len: int, context_len: float = 0.0) -> float:
    """Return from how many requests in flight on drafting hides what halving a verify costs: V0 <= k d(n) + r.

    0 if it always does, infinity if it never does. With linear costs (nothing free) of which one grows, and a verify
    that takes longer than the drafting, overlapping wins above it and nowhere below.
    """
    grows_s = draft_len * (costs.draft.slope_s + costs.draft_kv_s * context_len) + costs.turns_overhead.slope_s
    missing_s = costs.verify.base_s - draft_len * costs.draft.base_s - costs.turns_overhead.base_s
    return _from(missing_s, grows_s)


def least_context(costs: Costs, num_in_flight: float, draft_len: int) -> float:
    """Return from which context length on a drafter that reads its own keys and values hides what halving a verify
    costs. 0 if it always does, infinity if it never does, as for a drafter that keeps none."""
    short = costs.draft_s(num_in_flight, draft_len) + costs.turns_overhead.at(num_in_flight)
    missing_s = unsaved(costs.verify, num_in_flight * (draft_len + 1)) - short
    return _from(missing_s, draft_len * costs.draft_kv_s * num_in_flight)


def least_drafting(costs: Costs, num_in_flight: float, draft_len: int) -> float:
    """Return how long drafting and messages must take, in seconds, for overlapping to win where the verify is the
    longer: what halving the verify costs. Below it, a slower or more distant drafter makes overlapping better."""
    return max(unsaved(costs.verify, num_in_flight * (draft_len + 1)), 0.0)


def _from(missing_s: float, grows_s: float) -> float:
    if missing_s < 0:
        return 0.0
    return missing_s / grows_s if grows_s > 0 else inf
