"""The mode by measured goodput at the present load."""

from __future__ import annotations

from collections.abc import Mapping

from minedraft.core import events
from minedraft.core.policy.base import ModeDecision
from minedraft.core.policy.forecast.goodput import Goodput
from minedraft.core.policy.forecast.mode import ModeForecast
from minedraft.core.policy.mode_trials import ModeTrials
from minedraft.core.policy.steady import Steady
from minedraft.types import Batch, LoanTerms, Mode, Role

_LOOK_S = 0.1  # looks are at least this far apart: each takes most of a millisecond
_THINK_S = 0.5  # between two thoughts about a trial
_TRIAL_OPTIMISM = 0.15  # a trial needs that a mode would be better if so many more of its drafts were accepted
_FADE = 0.95  # weight that what was made before the last look keeps
_LEAST_ROUNDS = 4  # of a mode, before another one is tried
_LONGEST_PAUSE_ROUNDS = 4  # more time between two rounds is idle time
_LONGEST_PAUSE_S = 0.5  # the same, where that is more


class AutoMode:
    """Chooses a mode: what is best says `ModeForecast`, when to change says `Steady`.

    Every mode has the same seats in all: twice `max_batch_size`, in one batch or in two. So a change refuses nobody.
    A mode of which too little is known may have a trial, see `ModeTrials`.

    Args:
        max_batch_size: m of a batch while there are two. draft_len: the most drafts of a request.
    """

    def __init__(self, forecast: ModeForecast, max_batch_size: int, draft_len: int) -> None:
        self._forecast = forecast
        self._steady = Steady()
        self._trials = ModeTrials()
        self._num_seats = 2 * max_batch_size
        self._draft_len = draft_len
        self._mode: Mode | None = None  # in force
        self._asked: Mode | None = None  # asked for, until it is in force
        self._drafted: tuple[Mode, ...] = ()  # those with drafts that the drafter can take part in
        self._running: dict[Batch, int] = dict.fromkeys(Batch, 0)  # requests in each batch's last round
        self._prompt_lens: dict[int, int] = {}
        self._num_tokens = 0  # committed tokens of live requests, which a drafter would have to catch up with
        self._num_rounds = 0  # of the mode in force, without prompts
        self._round_s = 0.0  # expected, of the mode in force
        self._last_s = 0.0  # end of the last round
        self._worked_s = 0.0  # since the last look
        self._made = 0, 0.0  # output tokens since the last look and the seconds that they took, without idle time
        self._was_idle = True  # before the present round
        self._lately = 0.0, 0.0  # output tokens of the mode in force and the seconds that they took, older ones fading
        self._looked_s = -_LOOK_S
        self._thought_s = -_THINK_S
        self._seen = 1  # requests in flight at the last look
        self._best: Mapping[Mode, Goodput] = {}

    def terms(self, mode: Mode) -> LoanTerms:
        """Return the sizes for a mode."""
        return LoanTerms(mode, self._num_seats // mode.num_batches, self._draft_len if mode.has_drafts else 0)

    def explain(self) -> str:
        """Return why the present mode was chosen, with the numbers of the last look; "" before the first."""
        if not self._best or self._mode is None:
            return ""
        best = max(self._best, key=lambda mode: self._best[mode].tokens_per_s)
        if self._trials.home is not None:
            return f"{self._figures()}; {self._mode.value} is on trial"
        if self._mode in self._best and self._best[self._mode].tokens_per_s >= self._best[best].tokens_per_s:
            return self._figures()
        return f"{self._figures()}; {best.value} must stay clearly ahead first"

    def wanted(self, now_s: float) -> ModeDecision | None:
        if self._mode is None or self._asked is not None or not self._forecast.is_known:
            return None
        if now_s - self._looked_s < _LOOK_S or not self._num_rounds:
            return None
        worked_s, self._worked_s, self._looked_s = self._worked_s, 0.0, now_s
        self._lately = _FADE * self._lately[0] + self._made[0], _FADE * self._lately[1] + self._made[1]
        self._made = 0, 0.0
        self._seen = min(max(sum(self._running.values()), 1), self._num_seats)
        modes = self._modes()
        if self._mode in self._drafted and self._mode not in modes:  # it has more batches than there are requests
            modes = (*modes, self._mode)
        self._best = self._forecast.rates(self._seen, modes)
        rates = {mode: goodput.tokens_per_s for mode, goodput in self._best.items()}
        rates.setdefault(self._mode, 0.0)  # it drafts, and has no drafter
        drafting = self._trials.home or self._mode
        if drafting in self._best and drafting.has_drafts:  # without drafts nothing more is learnt of them
            rates[drafting] = self._forecast.doubted(self._seen, drafting)
        self._round_s = self._period_s(self._mode)
        self._trials.worked(worked_s, self._round_s)
        self._trials.ran(self._mode, self._seen, now_s)
        if self._trials.home is not None:
            return self._end_trial(rates)
        mode = self._steady.pick(self._mode, rates, self._seen, self._cost_s, worked_s, self._round_s)
        if mode is not None:
            self._steady.changed(self._seen)
            return self._change(mode, "auto")
        return self._try(self._mode, rates, now_s)

    def observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.RoundCommitted():
                self._count(event, now_s)
            case events.RequestQueued():
                self._prompt_lens[event.request_id] = event.prompt_len
                self._num_tokens += event.prompt_len
            case events.RequestEnded():
                self._num_tokens -= self._prompt_lens.pop(event.request_id, 0) + event.output_len
            case events.WorkerJoined() if event.info.role is Role.DRAFTER:
                drafted = Mode.SD, Mode.MINEDRAFT, Mode.PEARL
                self._drafted = tuple([mode for mode in drafted if event.info.can_run_ahead or not mode.runs_ahead])
                self._trials.forget()
            case events.WorkerLeft() if event.role is Role.DRAFTER:
                self._drafted = ()
            case events.ModeChanged():
                self._mode, self._asked = event.mode, None
                self._running = dict.fromkeys(Batch, 0)
                self._num_rounds = 0
                self._made, self._lately = (0, 0.0), (0.0, 0.0)

    def _count(self, event: events.RoundCommitted, now_s: float) -> None:
        passed_s, self._last_s = now_s - self._last_s, now_s
        if passed_s <= max(_LONGEST_PAUSE_ROUNDS * self._round_s, _LONGEST_PAUSE_S):
            self._worked_s += passed_s
            if not self._was_idle:
                self._made = self._made[0] + event.num_output_tokens, self._made[1] + passed_s
        self._was_idle = event.num_active == 0
        self._num_rounds += not event.is_prefill
        if self._asked is None and self._mode is not None and event.num_active >= self._mode.num_batches:
            self._trials.committed(event.is_prefill)
        self._num_tokens += event.num_output_tokens
        self._running[event.batch] = event.num_requests
        if event.num_active < len(Batch):
            self._running[event.batch.other] = 0

    def _change(self, mode: Mode, why: str) -> ModeDecision:
        self._asked = mode
        return ModeDecision(self.terms(mode), f"{why}: {self._figures()}")

    def _figures(self) -> str:
        parts = []
        for mode, goodput in sorted(self._best.items(), key=lambda item: -item[1].tokens_per_s):
            drafts = f" (k {goodput.num_drafts:.1f})" if mode.has_drafts else ""
            parts.append(f"{mode.value} {goodput.tokens_per_s:.0f}{drafts}")
        made, seconds = self._lately
        achieved = f"; {self._mode.value} made {made / seconds:.0f} lately" if self._mode and seconds else ""
        return f"expected tokens/s at {self._seen} in flight: {', '.join(parts)}{achieved}"

    def _modes(self) -> tuple[Mode, ...]:
        """Return the modes that can run now."""
        return (Mode.AR, *[mode for mode in self._drafted if mode.num_batches <= self._seen])

    def _period_s(self, mode: Mode) -> float:
        """Return the expected seconds of a round."""
        return self._best[mode].period_s if mode in self._best else 0.0

    def _cost_s(self, mode: Mode) -> float:
        """Return the time that a change to a mode costs: the drafter has not seen what was made without it."""
        if self._mode is None or self._mode.has_drafts or not mode.has_drafts:
            return 0.0
        return self._forecast.catch_up_s(self._num_tokens)

    def _try(self, present: Mode, rates: Mapping[Mode, float], now_s: float) -> ModeDecision | None:
        """Begin a trial, if one is worth it."""
        if self._num_rounds < _LEAST_ROUNDS or now_s - self._thought_s < _THINK_S:
            return None
        self._thought_s = now_s
        optimism = 0.0 if present.has_drafts else _TRIAL_OPTIMISM
        hoped = self._forecast.hopes(self._seen, self._modes(), optimism)
        hopes = {mode: goodput.tokens_per_s for mode, goodput in hoped.items()}
        mode = self._trials.pick(present, rates, hopes, self._seen, now_s, self._period_s, self._cost_s)
        return None if mode is None else self._change(mode, "trial")

    def _end_trial(self, rates: Mapping[Mode, float]) -> ModeDecision | None:
        """Return to the mode before the trial, unless the one that is tried turns out to be better."""
        if self._mode is None:
            return None
        if (winner := self._trials.result(self._mode, rates)) is None:
            return None
        if winner is self._mode:
            self._steady.changed(self._seen)
            return None
        return self._change(winner, "trial ended")
