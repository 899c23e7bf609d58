"""Every metric on one trace, whose figures are computed by hand.

seconds     0    1    2    3    4    5    6    7    8
request 0   sent |1        |3        |2                    two tokens of prompt ... ends at 5
request 1        sent      |1   |1             |4          two answers: (3: 1, 7: 4) and (4: 1); ends at 8
request 2   sent                X                          fails at 4
"""

from __future__ import annotations

import pytest

from minedraft.bench.metrics import acceptance, devices, latency, throughput
from minedraft.bench.metrics.record import (
    AnswerRecord,
    RequestRecord,
    RunRecord,
    ServiceCounts,
    SteadyRounds,
    count_devices,
)
from minedraft.bench.metrics.registry import METRICS, compute_all, metrics_table
from minedraft.bench.metrics.spread import spread
from minedraft.bench.vllm_result import most_open, to_vllm_result
from minedraft.output import AcceptanceState, ServiceStatus, WorkerState

RUN = RunRecord(
    requests=(
        RequestRecord(0.0, 5.0, 10, (AnswerRecord(((1.0, 1), (3.0, 3), (5.0, 2)), rounds=3),)),
        RequestRecord(1.0, 8.0, 20, (AnswerRecord(((3.0, 1), (7.0, 4)), 2), AnswerRecord(((4.0, 1),), 1))),
        RequestRecord(0.0, 4.0, 30, (AnswerRecord(((2.0, 9),), 5),), error="TIMEOUT: too late"),
    ),
    duration_s=8.0,
    # Two rows without an accepted draft, three of one, one of two, and one of three drafts, all accepted.
    counts=ServiceCounts(
        steps=5, wire_bytes=1000, feature_bytes=250, decode_s=4.0, decode_tokens=10, exposed_drafting_s=0.5,
        verifier_s=4.0, drafter_s=3.0, both_s=2.0, acceptances={(2, 0): 2, (2, 1): 3, (2, 2): 1, (3, 3): 1},
    ),
    steady=SteadyRounds(30.0, 40.0, 50.0, 0.8, 10.0),
    max_batch_size=4,
    num_devices=2,
)  # fmt: skip


def test_throughput() -> None:
    assert throughput.tokens_per_s(RUN) == 12 / 8
    assert throughput.tokens_per_s_per_device(RUN) == 12 / 8 / 2
    assert throughput.request_throughput(RUN) == 2 / 8
    assert throughput.total_token_throughput(RUN) == (12 + 30) / 8
    assert throughput.decode_only_tokens_per_s(RUN) == 10 / 4
    assert throughput.mean_round_tokens(RUN) == 12 / 6
    assert throughput.decode_tokens_per_s(RUN) == pytest.approx(4 * 2 / 0.050)
    assert throughput.makespan_per_request_ms(RUN) == 8000 / 2


def test_latency() -> None:
    assert latency.e2el_ms(RUN) == [5000, 7000]
    assert latency.ttft_ms(RUN) == [1000, 2000]
    assert latency.tpot_ms(RUN) == [4000 / 5, 4000 / 4], "an answer of one token has none"
    assert latency.itl_ms(RUN) == [2000, 2000, 4000]


def test_acceptance() -> None:
    assert acceptance.drafted_rows(RUN) == 7
    assert acceptance.verified_drafts(RUN) == 2 * 6 + 3
    assert acceptance.accepted_drafts(RUN) == 3 + 2 + 3
    assert acceptance.vsr(RUN) == 8 / 15
    assert acceptance.mean_accepted_len(RUN) == 8 / 7
    assert acceptance.accepted_len_histogram(RUN) == [2, 3, 1, 1]
    assert acceptance.acceptance_per_position(RUN) == [5 / 7, 2 / 7, 1 / 7]
    assert acceptance.conditional_acceptance(RUN) == [5 / 7, 2 / 5, 1 / 1]


def test_devices() -> None:
    assert (devices.verifier_busy(RUN), devices.verifier_waiting(RUN)) == (4 / 8, (3 - 2) / 8)
    assert (devices.drafter_busy(RUN), devices.drafter_waiting(RUN)) == (3 / 8, (4 - 2) / 8)
    assert devices.devices_idle(RUN) == 1 - (4 + 3 - 2) / 8
    assert devices.verifier_busy(RUN) + devices.verifier_waiting(RUN) + devices.devices_idle(RUN) == 1
    assert devices.drafter_busy(RUN) + devices.drafter_waiting(RUN) + devices.devices_idle(RUN) == 1
    assert devices.exposed_drafting_s(RUN) == 0.5
    assert (devices.wire_bytes_per_step(RUN), devices.feature_bytes_per_step(RUN)) == (200, 50)
    assert (devices.draft_ms(RUN), devices.verify_ms(RUN), devices.step_ms(RUN)) == (30, 40, 50)
    assert (devices.overlap_efficiency(RUN), devices.control_overhead_ms(RUN)) == (0.8, 10)


def test_a_run_in_which_nothing_happened_has_zeros() -> None:
    empty = RunRecord((), 0.0)
    names = {name for name, value in compute_all(empty).items() if value and value != 1}
    assert names == set()
    assert compute_all(empty)["acceptance_per_position"] == []


def test_a_spread_has_the_percentiles_of_numpy() -> None:
    figures = spread([4.0, 1.0, 3.0, 2.0])
    assert (figures["mean"], figures["median"], figures["p50"]) == (2.5, 2.5, 2.5)
    assert figures["std"] == pytest.approx(1.25**0.5)
    assert figures["p90"] == pytest.approx(1 + 0.9 * 3)
    assert figures["p99"] == pytest.approx(1 + 0.99 * 3)
    assert set(spread([7.0]).values()) == {7.0, 0.0}
    assert set(spread([]).values()) == {0.0}


def test_the_keys_of_vllm_have_its_definitions() -> None:
    result = to_vllm_result(RUN, is_detailed=True)
    assert (result["completed"], result["failed"], result["duration"]) == (2, 1, 8.0)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (30, 12)
    assert (result["request_throughput"], result["output_throughput"]) == (0.25, 1.5)
    assert result["total_token_throughput"] == 42 / 8
    assert (result["input_lens"], result["output_lens"]) == ([10, 20, 30], [6, 6, 9])
    assert result["errors"] == ["", "", "TIMEOUT: too late"]
    assert (result["mean_ttft_ms"], result["median_tpot_ms"], result["mean_e2el_ms"]) == (1500, 900, 6000)
    assert result["p99_itl_ms"] == pytest.approx(2000 + 0.98 * 2000)
    assert result["spec_decode_acceptance_rate"] == pytest.approx(100 * 8 / 15)
    assert result["spec_decode_acceptance_length"] == pytest.approx(1 + 8 / 7)
    assert result["spec_decode_num_drafts"] == 7
    assert (result["spec_decode_draft_tokens"], result["spec_decode_accepted_tokens"]) == (15, 8)
    assert result["spec_decode_per_position_acceptance_rates"] == [5 / 7, 2 / 7, 1 / 7]
    assert result["ttfts"] == [1.0, 2.0, 2.0]
    assert result["itls"] == [[2.0, 2.0], [4.0], []]
    assert (result["latencies"], result["start_times"]) == ([5.0, 7.0, 4.0], [0.0, 1.0, 0.0])
    assert result["max_concurrent_requests"] == 3


def test_requests_that_follow_one_another_are_not_open_together() -> None:
    assert most_open(RunRecord((RequestRecord(0.0, 1.0), RequestRecord(1.0, 2.0)), 2.0)) == 1


def test_counts_are_those_after_the_start_of_the_run() -> None:
    def counts(rows: int, busy_s: float) -> ServiceCounts:
        workers = (WorkerState("verifier", busy_s=busy_s), WorkerState("drafter", busy_s=1.0))
        acceptances = (AcceptanceState(2, 1, rows), AcceptanceState(2, 0, 4))
        return ServiceCounts.of(ServiceStatus("serving", steps=rows, workers=workers, acceptances=acceptances))

    counted = counts(9, 3.0).since(counts(5, 1.0))
    assert (counted.steps, counted.verifier_s, counted.drafter_s) == (4, 2.0, 0.0)
    assert counted.acceptances == {(2, 1): 4}, "a row that was not seen again is left out"


@pytest.mark.parametrize(
    ("verifier", "drafter", "has_drafts", "expected"),
    [
        (
            WorkerState("verifier", device="cpu:1", cores="1"),
            WorkerState("drafter", device="cpu:0", cores="0"),
            True,
            2,
        ),
        (
            WorkerState("verifier", device="cpu:1", cores="1"),
            WorkerState("drafter", device="cpu:0", cores="0"),
            False,
            1,
        ),
        (WorkerState("verifier", cores="0-1"), WorkerState("drafter", cores="0"), False, 2),
        (WorkerState("verifier", device="cpu:4-7", cores="4-7"), WorkerState("drafter", cores="0,2"), True, 6),
        (WorkerState("verifier", device="cuda:0"), WorkerState("drafter", device="cuda:1"), True, 2),
        (WorkerState("verifier", device="cuda:0"), WorkerState("drafter", device="cuda:0"), True, 1),
        (WorkerState("verifier", device="cuda:0"), WorkerState("drafter", device="cpu:0-1", cores="0-1"), True, 3),
    ],
)
def test_devices_are_gpus_and_cores(
    verifier: WorkerState, drafter: WorkerState, has_drafts: bool, expected: int
) -> None:
    assert count_devices((verifier, drafter), has_drafts=has_drafts) == expected


def test_every_metric_is_defined_once_and_says_what_it_is() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(metric.meaning.endswith(".") for metric in METRICS)
    rows = metrics_table().splitlines()
    assert len(rows) == len(METRICS) + 2
    assert "| `mean/median/p90/p99_ttft_ms` | ms | Time to first token of a request:" in metrics_table()
