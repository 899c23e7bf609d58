"""The automatic draft length against every fixed one, on simulated devices, with the real scheduler and lanes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.forecast.acceptance import AcceptanceRates
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.request import NewRequest, Request
from minedraft.sampling_params import MAX_DRAFT_LEN, SamplingParams
from minedraft.sim.acceptance import AcceptanceLaw, by_kind, same
from minedraft.sim.virtual_time import run_virtual
from minedraft.theory.costs import Cost
from minedraft.types import Batch, Mode
from tests.simulated.changing_load import ChangingLoad, Simulation, small_machine

SECONDS = 8.0
TARGET = Cost(0.0071, 0.0005, free=4)
HEAD = Cost(0.001, 0.0001)  # a small head beside a target that is bound by memory
MODEL = Cost(0.005, 0.0001)  # a drafter nearly as slow as its target


class Recording(AutoDraftLen):
    """Keeps its answers."""

    def __init__(self, experience: Experience) -> None:
        super().__init__(experience)
        self.answers: list[int] = []

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        self.answers.append(super().draft_len(request, batch_size, max_draft_len))
        return self.answers[-1]


def simulate(
    draft: Cost,
    mode: Mode,
    in_flight: int,
    draft_len: int | None,
    law: AcceptanceLaw,
    seconds: float = SECONDS,
    make: Callable[[Experience], AutoDraftLen] = AutoDraftLen,
) -> Simulation:
    """Return a run with a fixed draft length, or None for the automatic one, which `make` makes."""
    experience = Experience()
    policy = make(experience) if draft_len is None else None
    limits = SchedulerLimits(mode, -(-in_flight // mode.num_batches), MAX_DRAFT_LEN if policy else draft_len or 0)
    machine = small_machine(TARGET, draft, law)
    simulation = Simulation(machine, limits, (policy, None), [experience.observe])
    run_virtual(simulation.run(ChangingLoad(lambda now_s: in_flight, num_kinds=4), seconds))
    return simulation


@pytest.mark.parametrize(
    ("draft", "mode", "in_flight", "acceptance", "fixed"),
    [
        (HEAD, Mode.SD, 1, (0.6,), (0, 2, 3, 4)),
        (HEAD, Mode.SD, 4, (0.2, 0.5, 0.7, 0.95), (0, 1, 3)),
        (HEAD, Mode.SD, 16, (0.3,), (0, 1)),
        (HEAD, Mode.MINEDRAFT, 2, (0.85,), (2, 4, 6)),
        (HEAD, Mode.MINEDRAFT, 16, (0.85,), (0, 2, 3)),
        (MODEL, Mode.SD, 1, (0.6,), (0, 1, 2)),
        (MODEL, Mode.SD, 16, (0.85,), (0, 3)),
        (MODEL, Mode.MINEDRAFT, 2, (0.6,), (0, 1, 2)),
    ],
)
def test_no_fixed_length_is_much_better(
    draft: Cost, mode: Mode, in_flight: int, acceptance: tuple[float, ...], fixed: tuple[int, ...]
) -> None:
    """The bound is wider than the regret that long runs show: some seconds of a few requests are a sample."""
    auto = simulate(draft, mode, in_flight, None, by_kind(acceptance)).rate(SECONDS / 4, SECONDS)
    rates = {k: simulate(draft, mode, in_flight, k, by_kind(acceptance)).rate(SECONDS / 4, SECONDS) for k in fixed}
    assert auto > 0.95 * max(rates.values()), rates


def test_trials_become_rare_while_they_change_nothing() -> None:
    made: list[Recording] = []

    def make(experience: Experience) -> Recording:
        made.append(Recording(experience))
        return made[0]

    simulate(MODEL, Mode.MINEDRAFT, 8, None, by_kind((0.85,)), 2 * SECONDS, make)
    later = made[0].answers[len(made[0].answers) // 2 :]
    [(_, num_usual)] = Counter(later).most_common(1)
    assert 0.005 < 1 - num_usual / len(later) < 0.03


def test_a_place_that_is_seldom_drafted_follows_the_one_before_it() -> None:
    rates = AcceptanceRates()
    for _ in range(300):
        rates.add(2, 1)  # the text of before: second drafts are refused
    assert rates.rates(2)[1] < 0.05
    for _ in range(4000):
        rates.add(1, 1)
    assert rates.rates(2)[1] > 0.5, "old text says little of the new one"


def test_drafting_stops_when_drafts_are_refused_and_begins_again_when_they_are_accepted() -> None:
    def law(kind: int, num_before: int, place: float) -> float:
        return 0.0 if 2 <= asyncio.get_running_loop().time() <= 12 else 0.95

    simulation = simulate(HEAD, Mode.SD, 4, None, law, 40.0)
    without = simulate(HEAD, Mode.SD, 4, 0, same(0.0), 12.0).rate(4, 12)
    assert simulation.rate(4, 12) > 0.96 * without, "trying costs at most a little"
    assert simulation.rate(34, 40) > 1.15 * without


def test_a_length_that_a_client_sets_is_the_length() -> None:
    policy = AutoDraftLen(Experience())
    request = Request.create(1, NewRequest((1, 2), SamplingParams()))
    request.batch = Batch.A
    own = SchedulerLimits(Mode.SD, 4, MAX_DRAFT_LEN)
    assert policy.draft_len(request, 1, MAX_DRAFT_LEN) == 3, "nothing is known"
    policy.observe(own.lent(own.terms).changed("borrowed"), 0.0)
    assert policy.draft_len(request, 1, 7) == 7
    policy.observe(own.changed("the loan has ended"), 0.0)
    assert policy.draft_len(request, 1, MAX_DRAFT_LEN) == 3
