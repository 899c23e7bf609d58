"""What a comparison inside vLLM concludes from its samples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.lib.peers.arrivals import Rates
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.vllm.counters import Counters
from scripts.lib.vllm.findings import (
    Times,
    median_rates,
    paced_times,
    round_times,
    split_bound,
    to_lines,
    to_sentences,
    verify_times,
)
from scripts.lib.vllm.servers import Sample
from scripts.lib.vllm.ways import Way

RATES = Rates(100.0, 100.0, 1000.0, 0.1, 0.2, 640, 800)


def sample(
    way: Way, count: int, rate: float | None, repeat: int = 0, steady: dict[str, float] | None = None, **counted: float
) -> Sample:
    cell = Cell(CellKind.FIXED, count, None, 64)
    rates = replace(RATES, decode_tokens_per_s=rate)
    return Sample(way, cell, repeat, rates, Counters(counted), None if steady is None else Counters(steady), ())


def counted(num_steps: float, waited_s: float, verify_s: float) -> dict[str, float]:
    return {
        "minedraft_vllm_steps_total": num_steps,
        "minedraft_vllm_drafted_steps_total": num_steps,
        "minedraft_vllm_exposed_seconds_total": waited_s,
        "minedraft_vllm_verify_seconds_total": verify_s,
    }


def test_the_bound_is_the_formula() -> None:
    assert split_bound(Times(0.08, 0.1), Times(0.05, 0.06)) == pytest.approx(0.18 / 0.12)
    assert split_bound(Times(0.08, 0.1), Times(0.07, 0.06)) == pytest.approx(0.18 / 0.14)


def test_the_gain_is_the_median_of_pairs_within_a_repeat_and_not_of_medians() -> None:
    samples = [
        *(sample(Way.SERIAL, 16, rate, repeat) for repeat, rate in enumerate([100.0, 50.0, 200.0])),
        *(sample(Way.ALTERNATING, 16, rate, repeat) for repeat, rate in enumerate([120.0, 65.0, 220.0])),
    ]
    (line,) = to_lines(samples, round_times(samples))
    assert line.gain == pytest.approx(1.2)
    assert line.gains == pytest.approx((1.2, 1.3, 1.1))
    assert (line.bound, line.blocked, line.blocked_steady) == (None, None, None), "nobody has counted steps"
    assert median_rates(samples)[Way.ALTERNATING, 16] == 120.0


def test_a_cell_too_short_to_tell_is_left_out() -> None:
    assert to_lines([sample(Way.SERIAL, 2, None), sample(Way.ALTERNATING, 2, 100.0)], {}) == []


def test_times_are_of_serial_rounds_and_blocked_of_alternating_ones() -> None:
    samples = [
        sample(Way.SERIAL, 16, 100.0, **counted(10, 0.8, 1.0)),
        sample(Way.SERIAL, 8, 90.0, **counted(10, 0.5, 0.6)),
        sample(Way.ALTERNATING, 16, 130.0, steady=counted(10, 0.01, 0.39), **counted(20, 0.05, 1.2)),
    ]
    assert round_times(samples) == {16: Times(0.08, 0.1), 8: Times(0.05, 0.06)}
    (line,) = to_lines(samples, round_times(samples))
    assert line.bound == pytest.approx(1.5)
    assert line.blocked == pytest.approx(0.05 / 1.25)
    assert line.blocked_steady == pytest.approx(0.01 / 0.4)


def test_a_step_that_reads_prompts_is_no_verify() -> None:
    whole, steady = counted(12, 0.8, 3.0), counted(10, 0.8, 1.0)
    samples = [sample(Way.SERIAL, 16, 100.0, steady=steady, **whole), sample(Way.SERIAL, 8, 90.0, **whole)]
    assert round_times(samples) == {16: Times(0.08, 0.1)}, "the other one was too short to tell"


def test_a_verify_between_two_measured_ones_is_on_the_line_between_them() -> None:
    times = {8: Times(0.0, 0.06), 4: Times(0.0, 0.04)}
    assert verify_times(times, 9) == pytest.approx(
        {1: 0.04, 2: 0.04, 3: 0.04, 4: 0.04, 5: 0.045, 6: 0.05, 7: 0.055, 8: 0.06, 9: 0.06}
    )
    assert verify_times({}, 9) == {}


def test_a_slow_drafter_s_bound_is_of_its_share_of_a_verify() -> None:
    times = paced_times({16: Times(0.0, 0.1), 8: Times(0.0, 0.06)}, 16, 0.8)
    assert times[16] == Times(pytest.approx(0.08), pytest.approx(0.1))
    samples = [sample(Way.SERIAL, 16, 100.0), sample(Way.ALTERNATING, 16, 130.0)]
    (line,) = to_lines(samples, times)
    assert line.bound == pytest.approx(0.18 / 0.12)


def test_sentences_say_where_it_loses_and_why() -> None:
    samples = [
        sample(Way.AR, 4, 210.0),
        sample(Way.SERIAL, 4, 197.0, **counted(10, 0.05, 0.33)),
        sample(Way.SERIAL, 2, 120.0, **counted(10, 0.04, 0.25)),
        sample(Way.ALTERNATING, 4, 190.0, **counted(20, 0.0, 0.5)),
    ]
    first, second = to_sentences(samples, round_times(samples))
    assert first == (
        "4 in flight: alternating loses to serial, 0.96 of its tokens/s (bound 0.76): halving a batch costs more than "
        "the hidden drafting saves: two verifies of 2 take 50 ms, a draft and a verify of 4 38 ms"
    )
    assert second.startswith("  it has 0.90 of the tokens/s of ar: on a core each further row of a forward costs time")


def test_a_win_is_said_with_its_bound() -> None:
    samples = [
        sample(Way.SERIAL, 16, 100.0, **counted(10, 0.8, 1.0)),
        sample(Way.SERIAL, 8, 90.0, **counted(10, 0.5, 0.6)),
        sample(Way.ALTERNATING, 16, 130.0),
    ]
    assert to_sentences(samples, round_times(samples)) == [
        "16 in flight: alternating is 1.30 times as fast as serial (bound 1.50)"
    ]


def test_counters_are_summed_over_labels_and_subtracted() -> None:
    text = """# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0"} 30
vllm:spec_decode_num_draft_tokens_total{engine="1"} 10
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 10
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 3
"""
    before = Counters.parse(text)
    after = Counters.parse(text.replace(" 30", " 70").replace("} 10\n# TYPE vllm:num", "} 30\n# TYPE vllm:num"))
    assert "vllm:num_requests_running" not in before.values
    assert before.acceptance == 0.25
    assert after.since(before).acceptance == 0.5
    assert Counters({}).acceptance is None
