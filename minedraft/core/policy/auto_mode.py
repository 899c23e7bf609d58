"""The mode by measured goodput at the present load."""

from __future__ import annotations

from collections.abc import Mapping

from minedraft.core import events
from minedraft.core.policy.base import ModeDecision
from minedraft.core.policy.forecast.goodput import Goodput
from minedraft.core.policy.forecast.mode import ModeForecast
from minedraft.core.policy.steady import Steady
from minedraft.types import Batch, LoanTerms, Mode, Role

_ROUNDS_PER_LOOK = 12
_LOOK_S = 0.1  # looks are at least this far apart: each takes most of a millisecond
_FOLLOW_LOAD = 0.15  # weight of a new count of requests in flight
_TRIAL_SHARE = 0.01  # of the time, spent at most in modes that are expected to be slower
_TRIAL_LOOKS = 2
_TRIAL_OPTIMISM = 0.15  # a trial needs that a mode would be the best if so many more of its drafts were accepted
_TRIAL_GAIN = 1.05  # or if it were so much faster
_UNKNOWN_GAIN = 1.3  # the same for a mode that has not run yet
_LEAST_LOSS = 0.05  # of the rate, which a trial is expected to cost
_FIRST_CREDIT_S = 0.3  # for the trials of a service that has just begun
_LONGEST_PAUSE_S = 2.0  # more time between two rounds is idle time
_STALE_S = 15.0  # after which what a mode has shown is worth a trial again
_THINK_S = 1.0  # between two thoughts about a trial


class AutoMode:
    """Chooses ar, sd or minedraft: what is best says `ModeForecast`, when to change says `Steady`.

    Every mode has the same seats in all: twice `max_batch_size`, in one batch or in two. So a change refuses nobody.
    Now and then it tries a mode that may have become better since it was last measured, for `_TRIAL_SHARE` of the
    time at most.

    Args:
        max_batch_size: m of a batch while there are two. draft_len: the most drafts of a request.
    """

    def __init__(self, forecast: ModeForecast, max_batch_size: int, draft_len: int) -> None:
        self._forecast = forecast
        self._steady = Steady()
        self._num_seats = 2 * max_batch_size
        self._draft_len = draft_len
        self._mode: Mode | None = None  # in force
        self._asked: Mode | None = None  # asked for, until it is in force
        self._has_drafter = False
        self._running: dict[Batch, int] = dict.fromkeys(Batch, 0)  # requests in each batch's last round
        self._prompt_lens: dict[int, int] = {}
        self._num_tokens = 0  # committed tokens of live requests, which a drafter would have to catch up with
        self._in_flight = 1.0
        self._num_rounds = 0
        self._looked_s = -_LOOK_S
        self._thought_s = -_THINK_S
        self._credit_s = _FIRST_CREDIT_S  # time that trials may take
        self._home: Mode | None = None  # during a trial, the mode before it
        self._looks_left = 0  # of the trial
        self._last_run_s: dict[Mode, float] = {}  # when a mode was last in force
        self._best: Mapping[Mode, Goodput] = {}

    def terms(self, mode: Mode) -> LoanTerms:
        """Return the sizes for a mode."""
        return LoanTerms(mode, self._num_seats // mode.num_batches, self._draft_len if mode.has_drafts else 0)

    def explain(self) -> str:
        """Return why the present mode was chosen, with the numbers of the last look; "" before the first."""
        if not self._best or self._mode is None:
            return ""
        best = max(self._best, key=lambda mode: self._best[mode].tokens_per_s)
        if self._home is not None:
            return f"{self._figures()}; {self._mode.value} is on trial"
        return self._figures() + (f"; {best.value} must stay clearly ahead first" if best is not self._mode else "")

    def wanted(self, now_s: float) -> ModeDecision | None:
        if self._mode is None or self._asked is not None or not self._forecast.is_known:
            return None
        if self._num_rounds < _ROUNDS_PER_LOOK or now_s - self._looked_s < _LOOK_S:
            return None
        self._num_rounds, self._looked_s = 0, now_s
        num_in_flight = min(max(round(self._in_flight), 1), self._num_seats)
        self._best = self._forecast.rates(num_in_flight, self._has_drafter)
        rates = {mode: goodput.tokens_per_s for mode, goodput in self._best.items()}
        rates.setdefault(self._mode, 0.0)
        if self._home is not None:
            return self._end_trial(self._home, rates)
        mode = self._steady.pick(self._mode, rates, num_in_flight, self._cost_s)
        if mode is not None:
            self._steady.changed(num_in_flight)
            return self._change(mode, "auto")
        if (mode := self._trial(self._mode, rates, num_in_flight, now_s)) is not None:
            self._home, self._looks_left = self._mode, _TRIAL_LOOKS
            return self._change(mode, "trial")
        return None

    def observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.RoundCommitted():
                self._num_rounds += 1
                self._num_tokens += event.num_output_tokens
                self._running[event.batch] = event.num_requests
                if event.num_active < len(Batch):
                    self._running[event.batch.other] = 0
                self._in_flight += _FOLLOW_LOAD * (sum(self._running.values()) - self._in_flight)
            case events.RequestQueued():
                self._prompt_lens[event.request_id] = event.prompt_len
                self._num_tokens += event.prompt_len
            case events.RequestEnded():
                self._num_tokens -= self._prompt_lens.pop(event.request_id, 0) + event.output_len
            case events.WorkerJoined() if event.info.role is Role.DRAFTER:
                self._has_drafter = True
                self._last_run_s.clear()
            case events.WorkerLeft() if event.role is Role.DRAFTER:
                self._has_drafter = False
            case events.ModeChanged():
                if self._mode is not None:
                    self._last_run_s[self._mode] = now_s
                self._mode, self._asked = event.mode, None
                self._running = dict.fromkeys(Batch, 0)
                self._num_rounds = 0

    def _change(self, mode: Mode, why: str) -> ModeDecision:
        self._asked = mode
        return ModeDecision(self.terms(mode), f"{why}: {self._figures()}")

    def _figures(self) -> str:
        parts = []
        for mode, goodput in sorted(self._best.items(), key=lambda item: -item[1].tokens_per_s):
            drafts = f" (k {goodput.num_drafts:.1f})" if mode.has_drafts else ""
            parts.append(f"{mode.value} {goodput.tokens_per_s:.0f}{drafts}")
        return f"expected tokens/s at {round(self._in_flight)} in flight: {', '.join(parts)}"

    def _end_trial(self, home: Mode, rates: Mapping[Mode, float]) -> ModeDecision | None:
        """Return to the mode before the trial, unless the one that is tried turns out to be better."""
        self._looks_left -= 1
        if self._looks_left > 0 or self._mode is None:
            return None
        self._home = None
        if rates[self._mode] > rates.get(home, 0.0):
            self._steady.changed(round(self._in_flight))
            return None
        return self._change(home, "trial ended")

    def _cost_s(self, mode: Mode) -> float:
        """Return the time that a change to a mode costs: the drafter has not seen what was made without it."""
        if self._mode is None or self._mode.has_drafts or not mode.has_drafts:
            return 0.0
        return self._forecast.catch_up_s(self._num_tokens)

    def _trial(self, present: Mode, rates: Mapping[Mode, float], num_in_flight: int, now_s: float) -> Mode | None:
        """Return a mode to try, although it is not expected to be the best; it takes from the time for trials."""
        if now_s - self._thought_s < _THINK_S:
            return None
        self._credit_s += _TRIAL_SHARE * min(now_s - self._thought_s, _LONGEST_PAUSE_S)
        self._thought_s = now_s
        trial_s = _TRIAL_LOOKS * max(_ROUNDS_PER_LOOK * self._forecast.round_s(present, num_in_flight), _LOOK_S)
        for mode, hope in self._forecast.rates(num_in_flight, self._has_drafter, _TRIAL_OPTIMISM).items():
            gain = _TRIAL_GAIN if mode in self._last_run_s else _UNKNOWN_GAIN
            if mode is present or hope.tokens_per_s * gain < rates[present]:
                continue
            loss = max(1 - rates[mode] / max(rates[present], 1e-9), _LEAST_LOSS)
            cost_s = trial_s * loss + self._cost_s(mode)
            is_news = now_s - self._last_run_s.get(mode, -_STALE_S) >= _STALE_S
            if is_news and cost_s <= self._credit_s:
                self._credit_s -= cost_s
                return mode
        return None
