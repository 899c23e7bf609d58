"""The drafter's choice for a batch, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minedraft_workers.sampling.batched.adjusting import RowContext, adjust_rows
from minedraft_workers.sampling.batched.law import draw_rows, find_thresholds, largest_rows, noisy_peaks
from minedraft_workers.sampling.batched.rules import RowRules, RulePlace
from minedraft_workers.sampling.batched.transfer import download
from minedraft_workers.sampling.choose import ChoiceRow, DraftChoice
from minedraft_workers.sampling.randomness import Purpose
from minedraft_workers.sampling.vocab_columns import Columns


@dataclass(frozen=True, slots=True, eq=False)
class ChosenRows:
    """What was chosen for R rows, on the device.

    columns: int64 [R]. is_usable: bool [R]; the column of a row that is not usable is some column. q_columns, q_probs:
    int64 and float32 [R, m], what the rows under REJECTION were drawn from, -1 and 0 elsewhere; None if no row is.
    """

    columns: torch.Tensor
    is_usable: torch.Tensor
    q_columns: torch.Tensor | None = None
    q_probs: torch.Tensor | None = None


def choose_rows(logits: torch.Tensor, rules: RowRules, columns: Columns, top_m: int) -> ChosenRows:
    """Return the next draft of each row; nothing waits for the device.

    Args:
        logits: float32 [R, columns], adjusted.
        top_m: number of tokens that q is truncated to under REJECTION.
    """
    peaks, chosen = logits.max(dim=1)
    is_usable = peaks.isfinite()
    thresholds = find_thresholds(logits, peaks, rules)
    if rules.coupled is not None:
        take = rules.coupled.take
        noise = (take(logits), take(thresholds), take(rules.temperatures), take(rules.keys))
        rules.coupled.put(chosen, noisy_peaks(*noise, columns.noise))
    if rules.sampled is None and rules.certain is None:
        return ChosenRows(chosen, is_usable)
    q_columns = chosen.new_full((len(logits), min(top_m, columns.num_columns)), -1)
    q_probs = logits.new_zeros(q_columns.shape)
    if rules.sampled is not None:
        take = rules.sampled.take
        kept, probs = largest_rows(
            take(logits), take(peaks), take(rules.temperatures), take(thresholds), q_columns.shape[1]
        )
        drawn = draw_rows(probs, take(rules.uniforms[0]))
        # Of a row that is not usable, whatever was drawn.
        rules.sampled.put(chosen, kept.gather(1, drawn[:, None])[:, 0].clamp_(min=0))
        rules.sampled.put(q_columns, kept)
        rules.sampled.put(q_probs, probs)
    if rules.certain is not None:
        take = rules.certain.take
        q_columns[rules.certain.index, 0] = take(chosen)
        q_probs.index_fill_(0, rules.certain.index, 0.0)
        q_probs[rules.certain.index, 0] = 1.0
    return ChosenRows(chosen, is_usable, q_columns, q_probs)


def choose_drafts_together(
    logits: torch.Tensor, rows: Sequence[ChoiceRow], columns: Columns, top_m: int
) -> DraftChoice:
    """Return the next draft token of each request, by one copy to the host; arguments as `choose_drafts`."""
    adjusted = adjust_rows(logits, [RowContext(row.state, row.drafts) for row in rows], columns)
    places = [RulePlace(row.state, row.position, row.index) for row in rows]
    rules = RowRules.make(places, columns.num_columns, logits.device, (Purpose.DRAFT,))
    chosen = choose_rows(adjusted, rules, columns, top_m)
    has_q = chosen.q_columns is not None and chosen.q_probs is not None
    q = (chosen.q_columns, chosen.q_probs) if has_q else ()
    found, usable, *sides = download(chosen.columns, chosen.is_usable, *q)
    tokens = [
        columns.token_id(int(column)) if is_usable else None
        for column, is_usable in zip(found.tolist(), usable.tolist(), strict=True)
    ]
    if not sides:
        return DraftChoice(tokens, None, None)
    q_ids, q_probs = columns.token_ids(sides[0].astype("int32")), sides[1].astype("float32")
    bad = [index for index, token in enumerate(tokens) if token is None]
    q_ids[bad], q_probs[bad] = -1, 0.0
    return DraftChoice(tokens, torch.from_numpy(q_ids), torch.from_numpy(q_probs))
