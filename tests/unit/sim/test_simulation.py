"""The simulator against closed forms, against what was measured on a real machine, and under faults and limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minedraft.core.policy.auto_mode import AutoMode
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.forecast.mode import ModeForecast
from minedraft.sim.acceptance import same
from minedraft.sim.forwards import FittedForward
from minedraft.sim.service import Machine
from minedraft.sim.simulation import Load, endless_limits, run_simulation
from minedraft.theory.costs import Cost, Costs
from minedraft.theory.modes import predict_mode
from minedraft.types import Mode

ROOT = Path(__file__).parents[3]
COSTS = Costs(Cost(0.005), Cost(0.030, 0.0005))


def machine(rate: float, costs: Costs = COSTS) -> Machine:
    return Machine(FittedForward(costs.verify), FittedForward(costs.draft), same(rate))


@pytest.mark.parametrize("mode", [Mode.AR, Mode.SD, Mode.MINEDRAFT])
@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize(("size", "k"), [(1, 1), (4, 3), (8, 5)])
def test_rounds_that_all_go_alike_take_the_time_of_the_formula(mode: Mode, rate: float, size: int, k: int) -> None:
    """With every draft accepted, or none, all requests have the same rounds and end in the same one."""
    k = k if mode.has_drafts else 0
    num_rounds, each = 40, (k + 1 if rate else 1)
    load = Load(prompt_lens=(1,), output_lens=(num_rounds * each,), num_requests=size * mode.num_batches)
    run = run_simulation(machine(rate), endless_limits(mode, size, k), load)
    want = predict_mode(COSTS, mode, load.num_requests, [rate] * k)
    assert run.num_tokens == num_rounds * each * load.num_requests
    assert run.tokens_per_s == pytest.approx(want.tokens_per_s, rel=0.06)  # the first and last rounds do not overlap
    assert run.rounds.step_ms == pytest.approx(want.step_s * 1e3, rel=0.01)


@pytest.mark.parametrize("mode", [Mode.SD, Mode.MINEDRAFT])
def test_sampled_acceptance_gives_the_expected_tokens_per_step(mode: Mode) -> None:
    load = Load(prompt_lens=(1,), output_lens=(1500,), num_requests=4 * mode.num_batches)
    run = run_simulation(machine(0.7), endless_limits(mode, 4, 3), load)
    want = predict_mode(COSTS, mode, load.num_requests, [0.7] * 3)
    assert run.decode_tokens_per_s == pytest.approx(want.tokens_per_s, rel=0.05)
    assert run.rounds.mean_accepted_len == pytest.approx(0.7 + 0.49 + 0.343, rel=0.05)


def test_pearl_with_drafts_that_are_always_right_hides_the_drafting() -> None:
    load = Load(prompt_lens=(1,), output_lens=(200,), num_requests=1)
    runs = {mode: run_simulation(machine(1.0), endless_limits(mode, 1, 3), load) for mode in (Mode.SD, Mode.PEARL)}
    want = {mode: predict_mode(COSTS, mode, 1, [1.0] * 3, hit_rate=1.0).tokens_per_s for mode in runs}
    for mode, run in runs.items():
        assert run.tokens_per_s == pytest.approx(want[mode], rel=0.05)
    assert want[Mode.PEARL] > 1.4 * want[Mode.SD]


def test_the_same_arguments_give_the_same_run() -> None:
    noisy = replace(machine(0.6), noise=0.1)
    load = Load((5, 90), (40, 7, 60), num_requests=30, arrivals_per_s=20.0)
    first, second = (run_simulation(noisy, endless_limits(Mode.MINEDRAFT, 4, 3), load) for _ in range(2))
    assert first == second
    assert run_simulation(noisy, endless_limits(Mode.MINEDRAFT, 4, 3), load, seed=2) != first


def test_the_other_batch_hides_a_slow_link() -> None:
    """20 ms to the drafter and back fit beside the other batch's verify; in turns they are paid in full."""
    costs = Costs(Cost(0.004), Cost(0.060))
    near, far = machine(1.0, costs), replace(machine(1.0, costs), draft_link_s=0.010)
    load = Load((1,), (200,), num_requests=8)
    step_ms = {
        (mode, name): run_simulation(where, endless_limits(mode, size, 3), load).rounds.step_ms
        for mode, size in ((Mode.SD, 8), (Mode.MINEDRAFT, 4))
        for name, where in (("near", near), ("far", far))
    }
    assert step_ms[Mode.MINEDRAFT, "far"] == pytest.approx(step_ms[Mode.MINEDRAFT, "near"], rel=0.01)
    assert step_ms[Mode.SD, "far"] == pytest.approx(step_ms[Mode.SD, "near"] + 20, rel=0.01)


def test_workers_that_share_memory_slow_each_other_down_while_both_work() -> None:
    """A clock that goes from change to change and the formula for forwards that begin together agree."""
    costs = Costs(Cost(0.005), Cost(0.030), collision=0.5)
    shared = replace(machine(1.0, costs), collision=0.5)
    load = Load((1,), (1600,), num_requests=8)
    run = run_simulation(shared, endless_limits(Mode.MINEDRAFT, 4, 3), load)
    want = predict_mode(costs, Mode.MINEDRAFT, 8, [1.0] * 3)
    assert want.step_s == pytest.approx(0.030 + 0.5 * 0.015)
    assert run.rounds.step_ms == pytest.approx(want.step_s * 1e3, rel=1e-3)
    assert run.rounds.draft_ms == pytest.approx(1.5 * 15, rel=1e-3)


@pytest.mark.parametrize("message_s", [0.0005, 0.005, 0.020])
def test_a_step_takes_the_longer_lane_or_half_a_batch_of_round_trips(message_s: float) -> None:
    costs = Costs(Cost(0.009), Cost(0.030), turns_overhead=Cost(4 * message_s), queued_overhead=Cost(0.001))
    here = replace(machine(1.0, costs), link_s=message_s, gap_s=0.001)
    for mode, size in ((Mode.SD, 8), (Mode.MINEDRAFT, 4)):
        run = run_simulation(here, endless_limits(mode, size, 3), Load((1,), (800,), num_requests=8))
        want = predict_mode(costs, mode, 8, [1.0] * 3)
        # The steps of two batches alternate between short and long: their mean is of the whole run.
        assert run.decode_tokens_per_s == pytest.approx(want.tokens_per_s, rel=0.02)


def test_a_drafter_that_dies_costs_speed_and_no_token() -> None:
    load = Load((8,), (100,), num_requests=24, concurrency=8)
    limits = endless_limits(Mode.MINEDRAFT, 4, 3)
    whole = run_simulation(machine(0.8), limits, load)
    dying = run_simulation(machine(0.8), limits, load, drafter_dies_every_s=1.0, drafter_returns_after_s=0.5)
    assert dying.num_tokens == whole.num_tokens == 2400
    assert dying.num_failed == 0
    assert whole.seconds < dying.seconds < 2.5 * whole.seconds


def test_a_thousand_in_flight_and_more_that_wait_are_all_answered() -> None:
    load = Load((16,), (8,), num_requests=1500)
    run = run_simulation(machine(0.7), endless_limits(Mode.SD, 512, 3), load)
    assert (run.num_tokens, run.num_failed) == (12000, 0)
    assert run.first_token.p99 > run.first_token.p50 > 0


def test_little_memory_makes_requests_wait_and_loses_none() -> None:
    small = replace(machine(0.7), verify_blocks=40, draft_blocks=40)
    load = Load((60,), (60,), num_requests=12)
    run = run_simulation(small, endless_limits(Mode.MINEDRAFT, 4, 3), load)
    ample = run_simulation(machine(0.7), endless_limits(Mode.MINEDRAFT, 4, 3), load)
    assert run.num_tokens == ample.num_tokens == 720
    assert run.seconds > ample.seconds


def test_arrivals_come_at_their_rate_and_a_light_load_does_not_queue() -> None:
    load = Load((4,), (20,), num_requests=200, arrivals_per_s=1.0)
    run = run_simulation(machine(0.7), endless_limits(Mode.SD, 8, 3), load)
    assert 150 < run.seconds < 260
    assert run.first_token.p90 < 0.2


def test_auto_finds_the_best_mode_of_a_machine_that_is_not_here() -> None:
    """Drafting takes as long as verifying, and rows of the verify are cheap: overlapping wins."""
    costs = Costs(Cost(0.003), Cost(0.006, 0.0001))
    rates = {mode: predict_mode(costs, mode, 16, [0.8] * 3).tokens_per_s for mode in (Mode.AR, Mode.SD, Mode.MINEDRAFT)}
    assert max(rates, key=lambda mode: rates[mode]) is Mode.MINEDRAFT
    experience = Experience()
    policies = AutoDraftLen(experience), AutoMode(ModeForecast(experience, None), 8, 16)
    load = Load((4,), (2000,), num_requests=16)
    limits = endless_limits(Mode.SD, 16, 16)
    run = run_simulation(machine(0.8, costs), limits, load, policies=policies, observers=[experience.observe])
    assert run.decode_tokens_per_s > 0.9 * rates[Mode.MINEDRAFT]
