"""When a better mode is worth a change: bounds that keep a noisy forecast from moving requests to and fro. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minedraft.types import Mode

_MARGIN = 1.04  # a mode must promise this much more than the present one
_LOOKS = 2  # in a row at which it must do so
_DWELL_LOOKS = 3  # looks after a change before the next one; doubles with each change that comes early
_MOST_DOUBLINGS = 6
_CALM = 4  # dwell times without a change after which one doubling is taken back
_LOAD_FACTOR = 1.5  # another load is a reason for another mode: it ends the dwell time
_REPAY_S = 20.0  # in which the gain must make good for what the change costs


class Steady:
    """Turns the expected rates of modes, looked at now and then, into few changes."""

    def __init__(self) -> None:
        self._leader: Mode | None = None
        self._num_led = 0
        self._looks_left = 0
        self._num_doublings = 0
        self._num_calm = 0
        self._load = 0  # requests in flight at the last change

    def changed(self, num_in_flight: int) -> None:
        """Begin to dwell in a mode that has just been chosen."""
        self._leader, self._num_led, self._num_calm, self._load = None, 0, 0, num_in_flight
        self._looks_left = _DWELL_LOOKS << self._num_doublings
        self._num_doublings = min(self._num_doublings + 1, _MOST_DOUBLINGS)

    def pick(
        self, present: Mode, rates: Mapping[Mode, float], num_in_flight: int, cost_s: Callable[[Mode], float]
    ) -> Mode | None:
        """Return the mode to change to, or None to stay; one look.

        Args:
            rates: expected tokens per second. cost_s: the seconds of work that a change to a mode costs.
        """
        self._looks_left -= 1
        if self._looks_left < -_CALM * _DWELL_LOOKS * (self._num_calm + 1):
            self._num_calm += 1
            self._num_doublings = max(self._num_doublings - 1, 0)
        best = max(rates, key=lambda mode: rates[mode])
        gain = rates[best] / max(rates.get(present, 0.0), 1e-9)
        if best is present or gain < _MARGIN + cost_s(best) / _REPAY_S:
            self._leader = None
            return None
        self._num_led = self._num_led + 1 if best is self._leader else 1
        self._leader = best
        is_another_load = not self._load / _LOAD_FACTOR < num_in_flight < self._load * _LOAD_FACTOR
        if self._num_led < _LOOKS or (self._looks_left > 0 and not is_another_load):
            return None
        return best
