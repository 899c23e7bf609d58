"""When a better mode is worth a change: once as much time was lost by staying as a change costs. Pure.

Each look adds to what every other mode would have saved since the present one began, by the expected rates, and a look
at which it would have saved nothing takes from it (Page's cumulative sum). So a change is paid for before it is made: a
mode that is much better is taken after a few rounds, one that is a little better after many, in which little is lost;
and a noisy forecast of modes that are alike changes nothing. Time is counted in rounds of the present mode, because
each of them teaches something, and in seconds where a change costs seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minedraft.types import Mode

_SLACK = 0.02  # a mode must promise this much more than the present one, or its account goes down
_PRICE_ROUNDS = 3  # rounds that must be lost before a change
_LEAST_PRICE_S = 0.06
_CALM_ROUNDS = 90  # without a change, after which the price is halved again, down to the first one
_MOST_DOUBLINGS = 5  # of the price, one for each change
_LOAD_FACTOR = 1.5  # another load is a reason for another mode: the first price holds
_REPAY_S = 20.0  # in which the gain must make good for what the change costs


class Steady:
    """Turns the expected rates of modes, looked at now and then, into few changes."""

    def __init__(self) -> None:
        self._lost_s: dict[Mode, float] = {}  # by not running each other mode, since the last change
        self._num_doublings = -1  # of the price; the first mode was not chosen
        self._calm_s = 0.0  # since the last change, or since the price was halved
        self._load = 0  # requests in flight at the last change

    def changed(self, num_in_flight: int) -> None:
        """Begin to stay in a mode that has just been chosen."""
        self._lost_s.clear()
        self._load, self._calm_s = num_in_flight, 0.0
        self._num_doublings = min(self._num_doublings + 1, _MOST_DOUBLINGS)

    def pick(
        self,
        present: Mode,
        rates: Mapping[Mode, float],
        num_in_flight: int,
        cost_s: Callable[[Mode], float],
        passed_s: float,
        round_s: float,
    ) -> Mode | None:
        """Return the mode to change to, or None to stay; one look.

        Args:
            rates: expected tokens per second. cost_s: the seconds of work that a change to a mode costs.
            passed_s: seconds of work since the last look. round_s: seconds of a round.
        """
        self._calm_s += passed_s
        if self._calm_s > _CALM_ROUNDS * round_s:
            self._calm_s, self._num_doublings = 0.0, max(self._num_doublings - 1, -1)
        is_another_load = not self._load / _LOAD_FACTOR < num_in_flight < self._load * _LOAD_FACTOR
        price_s = max(_PRICE_ROUNDS * round_s, _LEAST_PRICE_S)
        price_s *= 1 if is_another_load else 2 ** max(self._num_doublings, 0)
        picked: Mode | None = None
        for mode, rate in rates.items():
            if mode is present:
                continue
            cost = cost_s(mode)
            gain = 1 - rates.get(present, 0.0) / max(rate, 1e-9) - _SLACK - cost / _REPAY_S
            lost_s = self._lost_s[mode] = max(self._lost_s.get(mode, 0.0) + gain * passed_s, 0.0)
            if lost_s > price_s + cost and gain > 0 and (picked is None or rate > rates[picked]):
                picked = mode
        return picked
