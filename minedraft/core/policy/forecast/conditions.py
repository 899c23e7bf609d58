"""Ways to run, and the conditions that costs are measured in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from minedraft.types import Mode


class Condition(Enum):
    """What else happens while a worker works."""

    ALONE = "alone"
    OVERLAPPED = "overlapped"
    WIDE = "wide"  # alone, on all cores


EXPECTED: Mapping[Condition, float] = {Condition.ALONE: 1.0, Condition.OVERLAPPED: 1.15, Condition.WIDE: 0.8}
"""Seconds in a condition that was never met, as a part of those alone."""

HOPED: Mapping[Condition, float] = {Condition.ALONE: 1.0, Condition.OVERLAPPED: 1.0, Condition.WIDE: 0.6}
"""The same for an optimist, so that a condition is met once where it may pay."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run: the mode, and whether the verifier has all cores."""

    mode: Mode
    is_wide: bool = False

    def condition(self, num_in_flight: int) -> Condition:
        if self.mode.num_batches > 1 and num_in_flight > 1:
            return Condition.OVERLAPPED
        return Condition.WIDE if self.is_wide else Condition.ALONE
