"""What each mode is expected to give at a load. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minedraft.core.policy.forecast.acceptance import chain
from minedraft.core.policy.forecast.cost_model import CostModel
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.forecast.goodput import Goodput, best_depth, goodput_at
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import Mode

_STALE_GAIN = 1.05  # what a mode may have gained since it ran
_EXTRAPOLATED_GAIN = 1.15  # the same if it never ran with about so many rows in a verify


class ModeForecast:
    """Says how many tokens per second each mode would give.

    Args:
        draft_len: the number of drafts that the settings fix; None if it is chosen by costs and acceptance.
    """

    def __init__(self, experience: Experience, draft_len: int | None) -> None:
        self._experience = experience
        self._draft_len = draft_len

    @property
    def is_known(self) -> bool:
        """Whether enough was measured to say anything."""
        return self._experience.costs.is_known and self._experience.costs.knows_drafts

    def rates(self, num_in_flight: int, modes: Sequence[Mode]) -> Mapping[Mode, Goodput]:
        """Return the goodput of each of these modes; `is_known` is true.

        Args:
            num_in_flight: requests, at least 1; it may be fewer than a mode has batches.
        """
        return {mode: self._goodput(self._experience.costs, mode, num_in_flight, 0.0) for mode in modes}

    def doubted(self, num_in_flight: int, mode: Mode) -> float:
        """Return the tokens per second of a mode if acceptance is as high as it may well be by what is known of it."""
        experience = self._experience
        return self._goodput(experience.costs, mode, num_in_flight, experience.acceptance.doubt).tokens_per_s

    def hopes(self, num_in_flight: int, modes: Sequence[Mode], optimism: float) -> Mapping[Mode, Goodput]:
        """Return the same as `rates` if what was never met turns out well.

        Args:
            optimism: added to the acceptance of each draft.
        """
        costs, hopes = self._experience.costs.hopeful(), {}
        for mode in modes:
            goodput = self._goodput(costs, mode, num_in_flight, optimism)
            is_near = costs.covers(costs.way_of(mode), num_in_flight, goodput.num_drafts * num_in_flight)
            gain = _STALE_GAIN if is_near else _EXTRAPOLATED_GAIN
            hopes[mode] = replace(goodput, tokens_per_s=gain * goodput.tokens_per_s)
        return hopes

    def _goodput(self, costs: CostModel, mode: Mode, num_in_flight: int, optimism: float) -> Goodput:
        most = self._draft_len or min(costs.next_depth, MAX_DRAFT_LEN)
        survivals = [chain(self._experience.acceptance.rates(most, optimism))]
        way = costs.way_of(mode)
        if not mode.has_drafts:
            return goodput_at(costs, way, num_in_flight, survivals, 0)
        if self._draft_len is None:
            return best_depth(costs, way, num_in_flight, survivals, 1)
        return goodput_at(costs, way, num_in_flight, survivals, self._draft_len)

    def catch_up_s(self, num_tokens: int) -> float:
        """Return the time in which the drafter caches the committed tokens that it has not seen."""
        return self._experience.costs.catch_up_s(num_tokens)
