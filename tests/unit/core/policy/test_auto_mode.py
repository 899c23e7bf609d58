"""The automatic mode against every fixed one, on simulated devices, with the real scheduler and lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.auto_mode import AutoMode
from minedraft.core.policy.base import FixedMode
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.forecast.goodput import Goodput
from minedraft.core.policy.forecast.mode import ModeForecast
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.sim.acceptance import same
from minedraft.sim.service import Machine
from minedraft.sim.virtual_time import run_virtual
from minedraft.theory.costs import Cost
from minedraft.types import Batch, Mode
from tests.simulated.changing_load import ChangingLoad, Simulation, small_machine

SECONDS = 9.0
SEATS = 32


def machine(draft_ms: float, acceptance: float, wide: float | None) -> Machine:
    draft_s = draft_ms / 1e3
    return small_machine(Cost(0.0071, 0.0005, free=4), Cost(draft_s, draft_s / 10), same(acceptance), wide)


def simulate(
    on: Machine, in_flight: Callable[[float], int], mode: Mode | None, seconds: float = SECONDS
) -> tuple[Simulation, AutoMode]:
    """Return a run in a mode, or None for the automatic one."""
    experience = Experience()
    auto = AutoMode(ModeForecast(experience, None), SEATS // 2, MAX_DRAFT_LEN)
    first = mode or Mode.SD
    simulation = Simulation(
        on,
        SchedulerLimits(first, SEATS // first.num_batches, MAX_DRAFT_LEN),
        (AutoDraftLen(experience), auto if mode is None else FixedMode()),
        [experience.observe],
    )
    run_virtual(simulation.run(ChangingLoad(in_flight), seconds))
    return simulation, auto


@pytest.mark.parametrize(
    ("draft_ms", "acceptance", "wide", "in_flight", "rivals"),
    [
        (1.0, 0.65, None, 1, (Mode.AR, Mode.SD)),
        (1.0, 0.9, None, 2, (Mode.SD, Mode.MINEDRAFT)),
        (1.0, 0.65, None, 16, (Mode.AR, Mode.SD)),
        (1.0, 0.65, 0.62, 2, (Mode.AR, Mode.SD)),
        (8.0, 0.65, 0.62, 1, (Mode.AR, Mode.SD)),
        (5.0, 0.9, 0.62, 32, (Mode.AR, Mode.MINEDRAFT)),
        (2.5, 0.9, None, 1, (Mode.SD, Mode.PEARL)),
        (3.0, 0.85, None, 1, (Mode.SD, Mode.PEARL)),
    ],
)
def test_no_fixed_mode_is_much_better(
    draft_ms: float, acceptance: float, wide: float | None, in_flight: int, rivals: tuple[Mode, ...]
) -> None:
    """The bound is wider than the regret that long runs show: these seconds are the first ones of a service."""
    on = machine(draft_ms, acceptance, wide)
    rates = {mode: simulate(on, lambda now_s: in_flight, mode)[0].rate(SECONDS / 3, SECONDS) for mode in rivals}
    simulation, auto = simulate(on, lambda now_s: in_flight, None)
    assert simulation.rate(SECONDS / 3, SECONDS) > 0.93 * max(rates.values()), (rates, auto.explain())
    assert len(simulation.changes) < 10
    assert f" in flight: {simulation.changes[-1][1].mode.value} " in auto.explain()


class KnownRates(ModeForecast):
    """A forecast that is given."""

    @property
    def is_known(self) -> bool:
        return True

    def __init__(self, rates: dict[Mode, float]) -> None:
        super().__init__(Experience(), None)
        self._rates_of = rates

    def rates(self, num_in_flight: int, modes: Sequence[Mode]) -> dict[Mode, Goodput]:
        return {mode: Goodput(1, 0.0, 1.0, rate, 0.2) for mode, rate in self._rates_of.items()}

    def hopes(self, num_in_flight: int, modes: Sequence[Mode], optimism: float) -> dict[Mode, Goodput]:
        return self.rates(num_in_flight, modes)

    def doubted(self, num_in_flight: int, mode: Mode) -> float:
        return self._rates_of[mode]

    def catch_up_s(self, num_tokens: int) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("sd", "said"),
    [(149.0, "sd 149 (k 1.0), ar 145; sd must stay clearly ahead first"), (140.0, "ar 145, sd 140 (k 1.0)")],
)
def test_it_says_why_it_stays_where_another_mode_is_expected_to_be_faster(sd: float, said: str) -> None:
    auto = AutoMode(KnownRates({Mode.AR: 145.0, Mode.SD: sd}), 4, 3)
    auto.observe(events.ModeChanged(Mode.AR, 8, 0, ""), 0.0)
    for number in range(12):
        auto.observe(events.RoundCommitted(Batch.A, number, 1, 1, (), is_prefill=False, num_active=1), number)
    assert auto.wanted(12.0) is None
    assert auto.explain() == f"expected tokens/s at 1 in flight: {said}"


def test_what_a_mode_made_lately_counts_no_idle_time() -> None:
    auto = AutoMode(KnownRates({Mode.AR: 100.0}), 4, 3)
    auto.observe(events.ModeChanged(Mode.AR, 8, 0, ""), 0.0)
    for burst in range(5):  # rounds of ten tokens in a tenth of a second, and pauses of almost half a second
        for step in range(6):
            is_last = step == 5
            event = events.RoundCommitted(Batch.A, step, 1, 10, (), is_prefill=False, num_active=0 if is_last else 1)
            auto.observe(event, burst + 0.1 * step)
            assert auto.wanted(burst + 0.1 * step) is None
    assert auto.explain().endswith("; ar made 100 lately")


def test_every_mode_has_the_same_seats() -> None:
    auto = AutoMode(ModeForecast(Experience(), None), 4, 3)
    assert {mode: auto.terms(mode).max_batch_size * mode.num_batches for mode in Mode} == dict.fromkeys(Mode, 8)
    assert auto.explain() == "", "nothing is known yet"
    assert auto.wanted(0.0) is None


def test_the_mode_follows_the_load_and_no_request_is_lost() -> None:
    on = machine(1.0, 0.65, None)
    simulation, _ = simulate(on, lambda now_s: 1 if now_s < 5 or now_s > 10 else 24, None, 16.0)
    mode_at = {
        moment: [change.mode for at_s, change in simulation.changes if at_s < moment][-1] for moment in (4.5, 9.0, 15.5)
    }
    assert mode_at == {4.5: Mode.PEARL, 9.0: Mode.AR, 15.5: Mode.PEARL}
    gaps = [after - before for (before, _), (after, _) in pairwise(simulation.tokens)]
    assert max(gaps) < 1.0, "tokens come all the time"
