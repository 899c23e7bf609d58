"""Machines with the costs of pairs of models that were measured on two cores of an AMD EPYC."""

from __future__ import annotations

from minedraft.sim.acceptance import by_kind
from minedraft.sim.forwards import FittedForward
from minedraft.sim.service import Machine
from minedraft.theory.costs import Cost


def qwen_like(noise: float = 0.08) -> Machine:
    """Return the costs of Qwen2.5-Coder 1.5B with 0.5B as in `scripts/results/matrix/qwen.json`: a round takes 120 to
    500 ms, each row of a verify costs, and drafts are accepted by kinds of text."""
    return _pair(Cost(0.115, 0.0066, 2), 0.9, Cost(0.028, 0.0012, 3), (0.0065, 0.002), (0.69, 0.92, 0.75, 0.85), noise)


def cheap_rows_like(noise: float = 0.08) -> Machine:
    """Return a pair as large whose verify of many rows costs little more than that of one."""
    return _pair(Cost(0.125, 0.0012, 2), 0.75, Cost(0.035, 0.0003, 3), (0.002, 0.001), (0.69, 0.92, 0.75, 0.85), noise)


def smollm2_like(noise: float = 0.08) -> Machine:
    """Return the costs of SmolLM2-135M with its drafter: a round takes 7 to 20 ms, and speculation does not pay."""
    verify, draft = Cost(0.0088, 0.00045, 2), Cost(0.0048, 0.00008, 3)
    return _pair(verify, 0.72, draft, (0.0005, 0.0002), (0.69, 0.8, 0.75, 0.85), noise)


def _pair(
    verify: Cost, wide: float, draft: Cost, prompt_token_s: tuple[float, float], rates: tuple[float, ...], noise: float
) -> Machine:
    on_both, draft_on_both = (Cost(wide * cost.base_s, wide * cost.slope_s, cost.free) for cost in (verify, draft))
    return Machine(
        FittedForward(verify, prompt_token_s=prompt_token_s[0], wide=on_both),
        FittedForward(draft, prompt_token_s=prompt_token_s[1], wide=draft_on_both),
        by_kind(rates),
        link_s=0.0003,
        collision=0.35,
        noise=noise,
        shares_cores=True,
    )
