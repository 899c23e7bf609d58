"""What each mode is expected to give at a load. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from minedraft.core.policy.forecast.acceptance import chain
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.forecast.goodput import Goodput, best_depth, goodput_at
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import Mode


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

    def rates(self, num_in_flight: int, has_drafter: bool = True, optimism: float = 0.0) -> Mapping[Mode, Goodput]:
        """Return the goodput of each mode that can run; `is_known` is true.

        Args:
            num_in_flight: requests, at least 1. optimism: added to the acceptance of each draft.
        """
        costs, most = self._experience.costs, self._draft_len or MAX_DRAFT_LEN
        survivals = [chain(self._experience.acceptance.rates(most, optimism))]
        rates = {Mode.AR: goodput_at(costs, costs.way_of(Mode.AR), num_in_flight, survivals, 0)}
        for mode in (Mode.SD, Mode.MINEDRAFT) if has_drafter else ():
            if num_in_flight < mode.num_batches:
                continue
            way = costs.way_of(mode)
            if self._draft_len is None:
                rates[mode] = best_depth(costs, way, num_in_flight, survivals, 1)
            else:
                rates[mode] = goodput_at(costs, way, num_in_flight, survivals, self._draft_len)
        return rates

    def catch_up_s(self, num_tokens: int) -> float:
        """Return the time in which the drafter caches the committed tokens that it has not seen."""
        return self._experience.costs.catch_up_s(num_tokens)

    def round_s(self, mode: Mode, num_in_flight: int) -> float:
        """Return the time of a round without drafts."""
        return self._experience.costs.period_s(self._experience.costs.way_of(mode), num_in_flight, 0, 0)
