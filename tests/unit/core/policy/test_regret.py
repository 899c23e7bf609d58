"""What the automatic mode loses while it finds out which mode is best, with costs as measured; see `auto_mode`.

Learning must cost little where a round takes a third of a second: of the first half minute, and after ten seconds.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.auto_mode import AutoMode
from minedraft.core.policy.base import FixedDraftLen, FixedMode
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.forecast.mode import ModeForecast
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.sim.service import Machine
from minedraft.sim.virtual_time import run_virtual
from minedraft.types import Mode
from tests.simulated.changing_load import ChangingLoad, Simulation
from tests.simulated.pairs import cheap_rows_like, qwen_like, smollm2_like

SEATS = 32
SEEDS = (1, 2, 3)
RIVALS = ((Mode.AR, 0), (Mode.SD, 1), (Mode.SD, 2), (Mode.SD, 3), (Mode.PEARL, 1), (Mode.MINEDRAFT, 2))


def simulate(machine: Machine, in_flight: int, seconds: float, seed: int, rival: tuple[Mode, int] | None) -> Simulation:
    """Return a run in a fixed mode with a draft length, or None for the automatic ones, from the first start on."""
    experience = Experience()
    mode, draft_len = rival or (Mode.SD, MAX_DRAFT_LEN)
    auto = AutoMode(ModeForecast(experience, None), SEATS // 2, MAX_DRAFT_LEN), AutoDraftLen(experience)
    simulation = Simulation(
        machine,
        SchedulerLimits(mode, SEATS // mode.num_batches, draft_len),
        (FixedDraftLen(), FixedMode()) if rival else (auto[1], auto[0]),
        [experience.observe],
        seed=seed,
    )
    run_virtual(simulation.run(ChangingLoad(lambda now_s: in_flight, 45, 80, num_kinds=4), seconds))
    assert not simulation.failures
    return simulation


def rate(runs: list[Simulation], start_s: float, end_s: float) -> float:
    return fmean([run.rate(start_s, end_s) for run in runs])


@pytest.mark.parametrize("in_flight", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("machine", [qwen_like(), cheap_rows_like()], ids=["qwen", "cheap-rows"])
def test_a_pair_with_long_rounds_loses_little_in_its_first_half_minute(machine: Machine, in_flight: int) -> None:
    """Where the first third goes by with prompts (16 in flight and more), so does the time to learn."""
    seconds = 30.0
    runs = [simulate(machine, in_flight, seconds, seed, None) for seed in SEEDS]
    rivals = {
        rival: [simulate(machine, in_flight, seconds, seed, rival) for seed in SEEDS]
        for rival in RIVALS
        if in_flight >= rival[0].num_batches
    }
    shares = {
        name: rate(runs, *span) / max(rate(rival, *span) for rival in rivals.values())
        for name, span in {"in all": (0.0, seconds), "after 10 s": (10.0, seconds)}.items()
    }
    assert shares["in all"] > 0.935, shares
    assert shares["after 10 s"] > 0.95, shares
    assert max(len(run.changes) for run in runs) <= 8, [run.changes for run in runs]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_commands_that_take_five_times_as_long_now_and_then_decide_nothing(in_flight: int) -> None:
    """A depth or a mode that is rarely tried, and has a hiccup then, must not look dear for long."""
    machine, seconds = replace(qwen_like(), hiccups=0.04), 30.0
    runs = [simulate(machine, in_flight, seconds, seed, None) for seed in range(6)]
    rivals = [[simulate(machine, in_flight, seconds, seed, (Mode.SD, k)) for seed in range(6)] for k in (1, 2, 3)]
    best = max(rate(rival, 10.0, seconds) for rival in rivals)
    assert rate(runs, 10.0, seconds) > 0.92 * best


@pytest.mark.parametrize("in_flight", [1, 4, 32])
def test_a_pair_with_short_rounds_loses_little_in_its_first_seconds(in_flight: int) -> None:
    runs = [simulate(smollm2_like(), in_flight, 6.0, seed, None) for seed in SEEDS[:2]]
    best = [simulate(smollm2_like(), in_flight, 6.0, seed, (Mode.AR, 0)) for seed in SEEDS[:2]]
    assert rate(runs, 0.0, 6.0) > 0.95 * rate(best, 0.0, 6.0)
    assert rate(runs, 2.0, 6.0) > 0.97 * rate(best, 2.0, 6.0)
    assert max(len(run.changes) for run in runs) <= 4


def test_a_load_that_goes_up_and_down_is_followed_without_many_changes() -> None:
    machine, seconds = qwen_like(), 120.0

    def in_flight(now_s: float) -> int:
        return 1 if now_s % 40 < 20 else 16

    def run(rival: tuple[Mode, int] | None) -> Simulation:
        experience = Experience()
        mode, draft_len = rival or (Mode.SD, MAX_DRAFT_LEN)
        auto = AutoMode(ModeForecast(experience, None), SEATS // 2, MAX_DRAFT_LEN)
        policies = (FixedDraftLen(), FixedMode()) if rival else (AutoDraftLen(experience), auto)
        limits = SchedulerLimits(mode, SEATS // mode.num_batches, draft_len)
        simulation = Simulation(machine, limits, policies, [experience.observe])
        run_virtual(simulation.run(ChangingLoad(in_flight, 45, 80, num_kinds=4), seconds))
        return simulation

    fixed = [run(rival).rate(0.0, seconds) for rival in RIVALS]
    automatic = run(None)
    assert automatic.rate(0.0, seconds) > 0.95 * max(fixed), fixed
    assert len(automatic.changes) < 16
