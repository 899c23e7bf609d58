"""Which mode is worth a trial, and when it has shown enough. Pure.

A forecast of a mode whose conditions were never met, or not for long, is a guess. A trial meets them. It costs seconds:
those of its rounds, as far as the mode is expected to be slower, and those of the changes. They are taken from a credit
that is a share of the working time, so that a service with long rounds tries less often; and a trial is begun only
where what a mode may gain is worth it. It ends as soon as its bound says that it cannot win.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log2

from minedraft.types import Mode

_SHARE = 0.01  # of the working time, which trials may lose
_FIRST_CREDIT_S = 0.3
_FIRST_CREDIT_ROUNDS = 2.5  # the same, where that is more
_ROUNDS = 4  # that a trial is expected to take
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 8
_CHANGE_ROUNDS = 1.0  # that two changes cost
_LEAST_LOSS = 0.05  # of the rate, which a trial is expected to cost
_LEAST_HOPE = 1.05  # a mode must be so much better than the present one, if all goes well
_WORTH_S = 10.0  # what may be gained is counted over so many seconds
_DOUBT = 0.16  # two standard deviations of a round's time, as a part of it
_LEAST_ALIKE = 4  # looks at one load before a trial: the end of a few requests is no load to try modes at
_STALE_S = 15.0  # after which a mode is worth a trial again; doubles with each that it loses clearly
_MOST_DOUBLINGS = 4


@dataclass(slots=True)
class _Trial:
    """home: the mode before. num_rounds: without prompts, of the mode that is tried. left_s: the longest it takes."""

    home: Mode
    num_rounds: int = 0
    left_s: float = 0.0


class ModeTrials:
    """Begins and ends trials.

    Attributes:
        home: during a trial, the mode before it.
    """

    def __init__(self) -> None:
        self._credit_s: float | None = None  # that trials may take
        self._trial: _Trial | None = None
        self._last_run_s: dict[tuple[Mode, int], float] = {}  # when a mode last ran about so many requests
        self._num_lost: dict[Mode, int] = {}  # trials that were clear, since it won one
        self._about = 0
        self._num_alike = 0  # looks at which there were about as many as now

    @property
    def home(self) -> Mode | None:
        return None if self._trial is None else self._trial.home

    def ran(self, mode: Mode, num_in_flight: int, now_s: float) -> None:
        """Take note that a mode runs so many requests now."""
        about = _about(num_in_flight)
        self._num_alike = self._num_alike + 1 if about == self._about else 1
        self._about = about
        self._last_run_s[mode, about] = now_s

    def forget(self) -> None:
        """Take what the modes have shown for stale: the drafter is another one."""
        self._last_run_s.clear()
        self._num_lost.clear()

    def worked(self, seconds: float, round_s: float) -> None:
        """Add to the credit. round_s: seconds of a round."""
        if self._credit_s is None:
            self._credit_s = max(_FIRST_CREDIT_S, _FIRST_CREDIT_ROUNDS * round_s)
        self._credit_s += _SHARE * seconds
        if self._trial is not None:
            self._trial.left_s -= seconds

    def committed(self, is_prefill: bool) -> None:
        """Take a round of the present mode."""
        if self._trial is not None and not is_prefill:
            self._trial.num_rounds += 1

    def pick(
        self,
        present: Mode,
        rates: Mapping[Mode, float],
        hopes: Mapping[Mode, float],
        num_in_flight: int,
        now_s: float,
        round_s: Callable[[Mode], float],
        cost_s: Callable[[Mode], float],
    ) -> Mode | None:
        """Begin a trial of the most promising mode and return it; None if none is worth it.

        Args:
            rates: expected tokens per second. hopes: the same if all goes well.
            round_s, cost_s: the seconds of a mode's round, and of the work that a change to it costs.
        """
        if self._num_alike < _LEAST_ALIKE:
            return None
        for mode in sorted(hopes, key=lambda mode: -hopes[mode]):
            gain = hopes[mode] / max(rates[present], 1e-9) - 1
            if mode is present or gain < _LEAST_HOPE - 1:
                continue
            stale_s = _STALE_S * 2 ** min(self._num_lost.get(mode, 0), _MOST_DOUBLINGS)
            if now_s - self._last_run_s.get((mode, _about(num_in_flight)), -stale_s) < stale_s:
                continue
            loss = max(1 - rates[mode] / max(rates[present], 1e-9), _LEAST_LOSS)
            price_s = _ROUNDS * round_s(mode) * loss + _CHANGE_ROUNDS * round_s(present) + cost_s(mode)
            if price_s <= min(self._credit_s or 0.0, gain * _WORTH_S):
                self._credit_s = (self._credit_s or 0.0) - price_s
                self._trial = _Trial(present, left_s=2 * _MOST_ROUNDS * round_s(mode) + cost_s(mode))
                return mode
        return None

    def result(self, present: Mode, rates: Mapping[Mode, float]) -> Mode | None:
        """Return the mode that has won the trial of the present one, and end it; None while it is open."""
        if (trial := self._trial) is None:
            return None
        won, lost = rates[present] >= rates.get(trial.home, 0.0), trial.left_s <= 0
        if trial.num_rounds < _MOST_ROUNDS and not lost:
            doubt = _DOUBT / max(trial.num_rounds, 1) ** 0.5
            if trial.num_rounds < _LEAST_ROUNDS or (won and trial.num_rounds < _ROUNDS):
                return None
            if not won and rates[present] * (1 + doubt) >= rates.get(trial.home, 0.0):
                return None
        self._trial = None
        if won and trial.num_rounds:
            self._num_lost[present] = 0
            return present
        if rates[present] * _LEAST_HOPE < rates.get(trial.home, 0.0):
            self._num_lost[present] = self._num_lost.get(present, 0) + 1
        return trial.home


def _about(num_in_flight: int) -> int:
    """Return a number that loads of about the same size share."""
    return round(log2(max(num_in_flight, 1)))
