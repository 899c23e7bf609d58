"""The laws of many rows at once, in torch's operators, without a wait for the device.

Each function has its twin for one row in `processors` or `choose`. Rows whose logits are not usable give any numbers,
never an error: who calls looks at their peaks. Work that needs several numbers for each logit is done in parts of the
rows, because it would take several times the memory of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from minedraft_workers.sampling.batched.rules import RowRules
from minedraft_workers.sampling.randomness import TokenNoise, gumbel

_PART = 1 << 23  # numbers that a part has, of at most eight bytes each
_DRAW_BLOCK = 256


def part_slices(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yield the parts of so many rows, each small enough to work on."""
    size = max(_PART // num_columns, 1)
    for first in range(0, num_rows, size):
        yield slice(first, min(first + size, num_rows))


def find_thresholds(logits: torch.Tensor, peaks: torch.Tensor, rules: RowRules) -> torch.Tensor:
    """Return the least logit that each row keeps, float32 [R]; -infinity where nothing is cut. See `process`."""
    thresholds = torch.full_like(peaks, -torch.inf)
    subset = rules.truncated
    if subset is None:
        return thresholds
    rows, tops = subset.take(logits), subset.take(peaks)
    values = (rules.temperatures, rules.top_p, rules.log_min_p, rules.top_k)
    temperatures, top_p, log_min_p, top_k = (subset.take(value) for value in values)
    found = torch.full_like(tops, -torch.inf)
    if rules.num_sorted:
        for part in part_slices(*rows.shape):
            largest = rows[part].topk(rules.num_sorted).values
            found[part] = _cut_sorted(largest, tops[part], temperatures[part], top_k[part], top_p[part], rows.shape[1])
    least = (tops.double() + temperatures * log_min_p).float()
    subset.put(thresholds, torch.maximum(found, least))
    return thresholds


def _cut_sorted(
    largest: torch.Tensor,
    peaks: torch.Tensor,
    temperatures: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    num_columns: int,
) -> torch.Tensor:
    """Return the thresholds, float32 [n], that top_k and top_p give rows whose largest logits, [n, m], descend."""
    last = (top_k.clamp(max=largest.shape[1]) - 1)[:, None]
    by_count = torch.where(top_k < num_columns, largest.gather(1, last)[:, 0], -torch.inf)
    weights = weigh(largest, peaks, temperatures, by_count)
    reached = weights.cumsum(1, dtype=torch.float64)
    goals = top_p[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, goals).clamp_(max=largest.shape[1] - 1)
    return torch.where(top_p < 1.0, largest.gather(1, place)[:, 0], by_count)


def weigh(
    logits: torch.Tensor, peaks: torch.Tensor, temperatures: torch.Tensor, thresholds: torch.Tensor
) -> torch.Tensor:
    """Return unnormalised probabilities, float32 [R, columns]: 1 for the peak, 0 for what is cut."""
    # Subtract the peak first: division by a tiny temperature then overflows to -inf, never to NaN.
    weights = (logits - peaks[:, None]).div_(temperatures.float()[:, None]).exp_()
    return weights.masked_fill_(logits < thresholds[:, None], 0.0)


def draw_rows(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return for each row the column at `u` of its cumulated weights, int64 [R]. See `draw`.

    Args:
        weights: [R, columns], not negative. u: float64 [R], in [0, 1).
    """
    if weights.shape[1] <= _DRAW_BLOCK:
        return _find_rows(weights, u)[0]
    missing = -weights.shape[1] % _DRAW_BLOCK
    padded = torch.nn.functional.pad(weights, (0, missing)) if missing else weights
    blocks = padded.view(len(weights), -1, _DRAW_BLOCK)
    block, u_inside = _find_rows(blocks.sum(dim=-1, dtype=torch.float64), u)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, _DRAW_BLOCK))[:, 0]
    column = block * _DRAW_BLOCK + _find_rows(inside, u_inside)[0]
    return column.clamp_(max=weights.shape[1] - 1)


def _find_rows(weights: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index at `u` of each row's cumulated weights, and the place of `u` within that index's share."""
    reached = weights.cumsum(1, dtype=torch.float64)
    total = reached[:, -1]
    # A product rounded up to the total must still find the last index that has weight.
    goal = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))[:, None]
    index = torch.searchsorted(reached, goal, right=True).clamp_(max=weights.shape[1] - 1)
    before = torch.where(index > 0, reached.gather(1, (index - 1).clamp_(min=0)), 0.0)
    inside = (goal - before) / (reached.gather(1, index) - before)
    return index[:, 0], inside[:, 0]


def noisy_peaks(
    logits: torch.Tensor,
    thresholds: torch.Tensor,
    temperatures: torch.Tensor,
    keys: torch.Tensor,
    noise: TokenNoise,
) -> torch.Tensor:
    """Return for each row the column with the largest logit + temperature x noise, int64 [R]. See `coupled_choice`."""
    best = []
    for part in part_slices(*logits.shape):
        rows = logits[part]
        scores = gumbel(noise.bits_by_key(keys[part])).mul_(temperatures[part, None]).add_(rows)
        best.append(scores.masked_fill_(rows < thresholds[part, None], -torch.inf).argmax(dim=1))
    return torch.cat(best)


def largest_rows(
    logits: torch.Tensor, peaks: torch.Tensor, temperatures: torch.Tensor, thresholds: torch.Tensor, top_m: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the top_m most probable columns of each row, renormalised. See `truncate_q`.

    Returns:
        Columns, int64 [R, m], m <= top_m, most probable first, of equally probable ones the first column first, -1
        after the last that is kept; and probabilities, float32 [R, m].
    """
    num_columns = logits.shape[1]
    top_m = min(top_m, num_columns)
    columns = torch.cat([_first_largest(logits[part], top_m) for part in part_slices(*logits.shape)])
    values = logits.gather(1, columns)
    kept = values >= thresholds[:, None]
    weights = ((values.double() - peaks.double()[:, None]) / temperatures[:, None]).exp_().masked_fill_(~kept, 0.0)
    probs = (weights / weights.sum(dim=1, keepdim=True)).float()
    return columns.masked_fill(~kept, -1), probs


def _first_largest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the columns of the largest logits, int64 [R, count], of equal ones the first first, which `topk` alone
    does not promise."""
    bits = (logits + 0.0).view(torch.int32).long()  # the sum makes one zero of the two
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as the numbers are
    reversed_columns = torch.arange(logits.shape[1] - 1, -1, -1, device=logits.device)
    keys = ordered.bitwise_left_shift_(32).bitwise_or_(reversed_columns)
    return logits.shape[1] - 1 - keys.topk(count).values.bitwise_and_(0xFFFFFFFF)


def distributions(weights: torch.Tensor) -> torch.Tensor:
    """Return p of rows of weights, float64 [R, columns]. See `distribution`."""
    wide = weights.double()
    return wide.div_(wide.sum(dim=1, keepdim=True))


def read_q_rows(ids: torch.Tensor, probs: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distributions that a drafter sent, int64 and float64 [R, m]: what is not usable is id 0 with
    probability 0, the rest is normalised; a row without anything usable is all zeros. See `read_q`.

    Args:
        ids: int64 [R, m]. probs: float64 [R, m].
    """
    usable = (ids >= 0) & (ids < vocab_size) & (probs > 0.0) & probs.isfinite()
    probs = torch.where(usable, probs, 0.0)
    totals = probs.sum(dim=1, keepdim=True)
    return torch.where(usable, ids, 0), torch.where(totals > 0.0, probs / totals, 0.0)


def accept_probs(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the probabilities of accepting drafts, float64 [R]. See `accept_prob`."""
    return torch.where(q > 0.0, (p / q).clamp(max=1.0), 0.0)


def residual_rows(p: torch.Tensor, q_ids: torch.Tensor, q_probs: torch.Tensor) -> torch.Tensor:
    """Return max(p - q, 0), float64 [R, columns], not normalised; p itself where nothing is left. See `residual`.

    Args:
        p: float64 [R, columns]. q_ids, q_probs: of `read_q_rows`.
    """
    rest = p.scatter_add(1, q_ids, -q_probs).clamp_min_(0.0)
    return torch.where(rest.sum(dim=1, keepdim=True) > 0.0, rest, p)
