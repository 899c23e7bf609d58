"""How the rows of a batch are chosen from: made on the host from the requests, in two copies to the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance
from minedraft_workers.sampling.batched.transfer import upload
from minedraft_workers.sampling.processors import is_greedy, usable_temperature
from minedraft_workers.sampling.randomness import Purpose, noise_keys, random_bits64_of, seed_of_draft, uniforms
from minedraft_workers.sequence import SequenceState


class RulePlace(NamedTuple):
    """One row of logits: the request, the absolute position of the token to choose, and the number of drafts of this
    round before it, which its draft is drawn with."""

    state: SequenceState
    position: int
    draft_index: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Some of the rows, one or more, in ascending order. index: int64 [n]. is_all: whether it is every row."""

    index: torch.Tensor
    is_all: bool

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return these of the rows."""
        return rows if self.is_all else rows.index_select(0, self.index)

    def put(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Replace these of the rows."""
        rows.index_copy_(0, self.index, values)


@dataclass(frozen=True, slots=True, eq=False)
class RowRules:
    """How each of R rows is chosen from; everything is on the device. A subset without rows is None.

    Attributes:
        truncated: the rows that keep some of their tokens only. num_sorted: how many of the largest logits of these
            decide which; 0 where min_p alone does.
        coupled, sampled: the rows under COUPLED and REJECTION that sample; all others take their peak.
        certain: the rows under REJECTION that take their peak: their q is 1 on it.
        temperatures, top_p, log_min_p: float64 [R]; top_p is 1 and log_min_p -infinity where they cut nothing.
        top_k: int64 [R]; the number of columns where it cuts nothing.
        keys: int32 [R, 2], of the noise under COUPLED.
        uniforms: float64 [purposes, R], a number for each purpose that was asked for.
    """

    truncated: Subset | None
    num_sorted: int
    coupled: Subset | None
    sampled: Subset | None
    certain: Subset | None
    temperatures: torch.Tensor
    top_p: torch.Tensor
    log_min_p: torch.Tensor
    top_k: torch.Tensor
    keys: torch.Tensor
    uniforms: torch.Tensor

    @classmethod
    def make(
        cls, places: Sequence[RulePlace], num_columns: int, device: torch.device, purposes: Sequence[Purpose]
    ) -> RowRules:
        """Return the rules of these rows of logits.

        Args:
            num_columns: of the logits.
            purposes: of the uniform numbers; those for DRAFT are drawn with the seed of the draft.
        """
        samplings = [place.state.spec.sampling for place in places]
        noise, *numbers = _random_bits(places, (Purpose.TOKEN_NOISE, *purposes))
        floats = [
            [usable_temperature(sampling.temperature) for sampling in samplings],
            [sampling.top_p for sampling in samplings],
            [math.log(sampling.min_p) if sampling.min_p > 0.0 else -math.inf for sampling in samplings],
            *(uniforms(bits) for bits in numbers),
        ]
        top_k = [_top_k(sampling, num_columns) for sampling in samplings]
        kinds = _sort_out(places, num_columns)
        integers = np.concatenate([noise_keys(noise).ravel(), np.array(top_k), *kinds]).astype(np.int32)
        temperatures, top_p, log_min_p, *uniform_rows = upload(np.array(floats, np.float64), device)
        keys, counts, *parts = torch.split(
            upload(integers, device), [2 * len(places), len(places), *(len(kind) for kind in kinds)]
        )
        truncated, coupled, sampled, certain = (
            Subset(part.long(), len(part) == len(places)) if len(part) else None for part in parts
        )
        return cls(
            truncated,
            _num_sorted([samplings[i] for i in kinds[0]], num_columns),
            coupled,
            sampled,
            certain,
            temperatures,
            top_p,
            log_min_p,
            counts.long(),
            keys.view(-1, 2),
            torch.stack(uniform_rows) if uniform_rows else temperatures.new_empty(0, len(places)),
        )


def _top_k(sampling: SamplingParams, num_columns: int) -> int:
    return sampling.top_k if 0 < sampling.top_k < num_columns else num_columns


def _sort_out(places: Sequence[RulePlace], num_columns: int) -> list[npt.NDArray[np.int64]]:
    """Return the numbers of the truncated, coupled, sampled and certain rows."""
    truncated: list[int] = []
    coupled: list[int] = []
    sampled: list[int] = []
    certain: list[int] = []
    for row, (state, _, _) in enumerate(places):
        sampling, acceptance = state.spec.sampling, state.spec.acceptance
        if is_greedy(state):
            if acceptance is Acceptance.REJECTION:
                certain.append(row)
            continue
        (coupled if acceptance is Acceptance.COUPLED else sampled).append(row)
        if _top_k(sampling, num_columns) < num_columns or sampling.top_p < 1.0 or sampling.min_p > 0.0:
            truncated.append(row)
    return [np.array(rows, np.int64) for rows in (truncated, coupled, sampled, certain)]


def _num_sorted(samplings: Sequence[SamplingParams], num_columns: int) -> int:
    """Return how many of the largest logits of a row are looked at to truncate it."""
    if any(sampling.top_p < 1.0 for sampling in samplings):
        return num_columns
    counts = [_top_k(sampling, num_columns) for sampling in samplings]
    return max((count for count in counts if count < num_columns), default=0)


def _random_bits(places: Sequence[RulePlace], purposes: Sequence[Purpose]) -> list[npt.NDArray[np.uint64]]:
    """Return the bits of each row for each purpose."""
    seeds = np.array([place.state.spec.seed for place in places], np.uint64)
    drafts = np.array([seed_of_draft(place.state.spec.seed, place.draft_index) for place in places], np.uint64)
    positions = np.array([place.position for place in places], np.uint64)
    return [random_bits64_of(drafts if purpose is Purpose.DRAFT else seeds, positions, purpose) for purpose in purposes]
