"""When a process that has ended is started again: a pure decision from its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from minedraft.errors import EXIT_CONFIG


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """One end of a process. at_s: monotonic seconds. exit_code: negative for a signal."""

    at_s: float
    exit_code: int


@dataclass(frozen=True, slots=True)
class RestartRules:
    """The bounds of restarting one process.

    Attributes:
        first_backoff_s, last_backoff_s: seconds before the first restart, doubled for each end in the window, and the
            most.
        budget: restarts within `window_s` seconds.
        is_optional: beyond the budget, go on every `last_backoff_s` instead of giving up.
    """

    first_backoff_s: float = 0.5
    last_backoff_s: float = 30.0
    budget: int = 5
    window_s: float = 300.0
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after so many seconds. number: of this restart within the window."""

    after_s: float
    number: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again."""

    cause: str


ESSENTIAL = RestartRules()
"""For a process that the service cannot answer without."""

OPTIONAL = RestartRules(is_optional=True)
"""For a process that only makes the service faster."""

LOADING = RestartRules(budget=2)
"""For a process that has never been ready: most likely it never will be."""

Action: TypeAlias = Restart | GiveUp


def next_action(history: Sequence[ProcessEnd], now_s: float, rules: RestartRules = ESSENTIAL) -> Action:
    """Return what to do about a process that has just ended.

    A wrong configuration (exit code 78) is never retried: it cannot mend itself.

    Args:
        history: its ends, the present one last; at least one.
        now_s: monotonic seconds, not before the last end.
    """
    if history[-1].exit_code == EXIT_CONFIG:
        return GiveUp(f"its configuration cannot be used (exit code {EXIT_CONFIG})")
    number = sum(1 for end in history if now_s - end.at_s <= rules.window_s)
    if number > rules.budget and not rules.is_optional:
        return GiveUp(f"it has ended {number} times within {rules.window_s:g} s, the limit is {rules.budget} restarts")
    if number > rules.budget:
        return Restart(rules.last_backoff_s, number)
    return Restart(min(rules.first_backoff_s * 2.0 ** max(number - 1, 0), rules.last_backoff_s), number)
