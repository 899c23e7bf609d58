"""How many decode steps one verify command carries. Pure.

A command of several steps spares the message both ways, the two wakes and the accounts of all steps but one. What it
costs: tokens come in bursts, and a newcomer or the end of a request is met only after the command. Both are bounded by
time, so the number follows from how long a step takes.
"""

from __future__ import annotations

from minedraft.core import events

LONGEST_S = 0.035
"""Seconds that the steps of one command take together at most: a stream has at least 28 updates a second."""
_MOST = 4  # more spare little: of the control of a step, 3/4 is gone by then
_FOLLOW = 0.2  # weight of a new measurement


class StepsPerCommand:
    """Learns from events how long a step takes; see `minedraft.core.events.Observer`."""

    def __init__(self) -> None:
        self._step_s: float | None = None
        self._decoding: set[int] = set()  # rounds without prompts and drafts that have not ended

    def num_steps(self) -> int:
        """Return how many steps the next command may carry; one until a step has been measured."""
        if self._step_s is None:
            return 1
        return max(min(int(LONGEST_S / max(self._step_s, 1e-6)), _MOST), 1)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event."""
        match event:
            case events.RoundPlanned() if not event.num_prompt_tokens and not event.num_drafts:
                self._decoding.add(event.number)
            case events.Verified() if event.number in self._decoding and event.timing.forward_ns:
                step_s = event.timing.busy_ns / 1e9 / max(event.num_steps, 1)
                self._step_s = step_s if self._step_s is None else self._step_s + _FOLLOW * (step_s - self._step_s)
            case events.RoundCommitted() | events.RoundAbandoned():
                self._decoding.discard(event.number)
