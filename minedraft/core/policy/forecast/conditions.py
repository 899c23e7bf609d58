"""Ways to run, and the conditions that costs are measured in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from minedraft.types import BRANCHES, Mode, Role


class Condition(Enum):
    """What else happens while a worker works."""

    ALONE = "alone"
    OVERLAPPED = "overlapped"  # beside the other worker, each on its own cores
    WIDE = "wide"  # alone, on all cores
    SHARED = "shared"  # both at once, each on all cores: only while they cache a prompt


EXPECTED = {
    Condition.ALONE: 1.0,
    Condition.OVERLAPPED: 1.15,
    Condition.WIDE: 0.8,
    Condition.SHARED: 1.0,
}
"""Seconds in a condition that was never met, as a part of those alone."""

HOPED = EXPECTED | {Condition.OVERLAPPED: 1.0, Condition.WIDE: 0.6}
"""The same for an optimist, so that a condition is met once where it may pay."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run: the mode, the workers that have more cores than their own, and how many branches of a request the
    drafter prepares where it runs ahead."""

    mode: Mode
    wide: frozenset[Role] = frozenset()
    num_branches: int = BRANCHES

    def num_batches(self, num_in_flight: int) -> int:
        """Return how many batches alternate: one, while there is one request."""
        return min(self.mode.num_batches, num_in_flight)

    def condition(self, num_in_flight: int, role: Role = Role.VERIFIER) -> Condition:
        """Return the condition that a worker is in while it verifies, or drafts for the round that waits for it."""
        if self.num_batches(num_in_flight) > 1 or (self.mode.runs_ahead and role is Role.VERIFIER):
            return Condition.OVERLAPPED
        return Condition.WIDE if role in self.wide else Condition.ALONE

    def prompt_condition(self, role: Role) -> Condition:
        """Return the condition in which a worker caches prompts, which both do at once. It is the same in turns and
        overlapped where each has its own cores: a difference of noise would choose the mode."""
        if role not in self.wide:
            return Condition.ALONE
        return Condition.SHARED if self.mode.has_drafts and len(self.wide) > 1 else Condition.WIDE
