"""The metrics of a hand-computed sequence of events: names, types and values as a scraper reads them."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from minedraft.core import events
from minedraft.messages import LinkStats, Timing
from minedraft.observe.device_use import DeviceUse
from minedraft.observe.exposition import Page
from minedraft.observe.histogram import Histogram
from minedraft.observe.metrics import Meter
from minedraft.output import BatchState, ServiceStatus, SourceState, WorkerState
from minedraft.types import Batch, DraftMethod, FinishReason, Role

MS = 1_000_000
# Two requests, both seated in batch A. The first gets 1 token at second 3 and 3 tokens at second 3.5, with which it
# ends; the second gets 2 tokens at second 3, and is aborted at second 5. A third one ends with an error unseated.
EVENTS: list[tuple[float, events.Event]] = [
    (1.0, events.RequestQueued(1, prompt_len=7)),
    (1.5, events.RequestQueued(2, prompt_len=30)),
    (2.0, events.RequestSeated(1, Batch.A)),
    (2.0, events.RequestSeated(2, Batch.A)),
    (2.0, events.RoundPlanned(Batch.A, 1, 2, num_prompt_tokens=37, num_drafts=0)),
    (3.0, events.Verified(Batch.A, 1, Timing(busy_ns=900 * MS, start_ns=2_100 * MS))),
    (3.0, events.RoundCommitted(Batch.A, 1, 2, 3, (), is_prefill=True, num_active=1, grown=((1, 1), (2, 2)))),
    (3.1, events.RequestPreempted(2)),
    (3.1, events.RequestSeated(2, Batch.A)),
    (3.1, events.RoundPlanned(Batch.A, 2, 2, num_prompt_tokens=0, num_drafts=5, depth=3)),
    (3.4, events.Drafted(Batch.A, 2, Timing(busy_ns=200 * MS, start_ns=3_100 * MS), is_prefill=False)),
    (3.5, events.Verified(Batch.A, 2, Timing(busy_ns=100 * MS, idle_ns=400 * MS, start_ns=3_400 * MS))),
    (3.5, events.RequestEnded(1, 4, FinishReason.LENGTH)),
    (
        3.5,
        events.RoundCommitted(
            Batch.A, 2, 2, 3, ((3, 2), (2, 0)), is_prefill=False, num_active=1,
            sources=(DraftMethod.MODEL, DraftMethod.NGRAM), grown=((1, 3),),
        ),
    ),
    (4.0, events.RequestQueued(3, prompt_len=5)),
    (4.0, events.RequestEnded(3, 0, None, "NUMERIC")),
    (4.5, events.RoundPlanned(Batch.A, 3, 1, num_prompt_tokens=9, num_drafts=0)),
    (4.6, events.RoundAbandoned(Batch.A, 3)),
    (5.0, events.RequestEnded(2, 2, FinishReason.ABORT)),
]  # fmt: skip

STATUS = ServiceStatus(
    state="degraded",
    mode="minedraft",
    draft_len=3,
    max_batch_size=8,
    num_waiting=4,
    num_running=2,
    batches=(BatchState("A", 2, 7), BatchState("B", 0, 6)),
    workers=(
        WorkerState("drafter", "lost", num_blocks=0, busy=0.25, restarts=3),
        WorkerState("verifier", "ready", num_blocks=40, num_free_blocks=10, busy=0.75, num_queued=2),
    ),
    overlap_efficiency=0.9,
    output_tokens=6,
    preemptions=1,
    stale_replies=11,
    wire_bytes=12_345,
    verified_drafts=5,
    accepted_drafts=2,
    errors={"OVERLOADED": 4},
    sources=(SourceState("model", 1, 3, 2), SourceState("ngram", 1, 2, 0)),
    faults={"drafter_lost": 3},
    exposed_drafting_s=0.2,
    suspended="no draft is accepted",
)


class _Once:
    def __init__(self, page: Page, meter: Meter) -> None:
        self._page, self._meter = page, meter

    def collect(self):
        return self._page.metrics(STATUS, self._meter)


def scraped() -> tuple[dict[str, str], dict[tuple[str, frozenset], float]]:
    """Return the type of each metric, and the value of each sample by its name and its labels but the common ones."""
    meter = Meter()
    for now_s, event in EVENTS:
        meter.observe(event, now_s)
    registry = CollectorRegistry()
    registry.register(_Once(Page("big"), meter))
    types, values = {}, {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        types[family.name] = family.type
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("model_name"), labels.pop("engine")) == ("big", "0"), sample
            key = sample.name, frozenset(labels.items())
            assert key not in values, "each sample once"
            values[key] = sample.value
    return types, values


def test_names_types_and_values_are_those_of_the_events():
    types, values = scraped()

    def value(name: str, **labels: str) -> float:
        return values[name, frozenset(labels.items())]

    def summary(name: str, **labels: str) -> tuple[float, float]:
        return value(f"{name}_count", **labels), value(f"{name}_sum", **labels)

    assert value("vllm:num_requests_running") == 2
    assert value("vllm:num_requests_waiting") == 4
    assert value("vllm:kv_cache_usage_perc") == 0.75
    assert value("vllm:num_preemptions_total") == 1
    assert value("vllm:prompt_tokens_total") == 37
    assert value("vllm:generation_tokens_total") == 6
    ends = {reason: value("vllm:request_success_total", finished_reason=reason) for reason in
            ("stop", "length", "abort", "error")}  # fmt: skip
    assert ends == {"stop": 0, "length": 1, "abort": 1, "error": 1}
    assert summary("vllm:time_to_first_token_seconds") == (2, 2.0 + 1.5)
    assert summary("vllm:inter_token_latency_seconds") == (1, 0.5)
    assert summary("vllm:request_time_per_output_token_seconds") == (2, 0.5 / 3 + 0)
    assert summary("vllm:e2e_request_latency_seconds") == (2, 2.5 + 3.5)
    assert summary("vllm:request_queue_time_seconds") == (2, 1.0 + 0.5)
    assert summary("vllm:request_prefill_time_seconds") == (2, 2.0)
    assert summary("vllm:request_decode_time_seconds") == (2, 0.5)
    assert summary("vllm:request_inference_time_seconds") == (2, 1.5 + 1.0)
    assert summary("vllm:request_prompt_tokens") == (2, 37)
    assert summary("vllm:request_generation_tokens") == (2, 6)
    assert summary("vllm:iteration_tokens_total") == (2, 40 + 3)
    assert value("vllm:iteration_tokens_total_bucket", le="8.0") == 1
    assert value("vllm:iteration_tokens_total_bucket", le="64.0") == 2
    assert value("vllm:spec_decode_num_drafts_total") == 2
    assert value("vllm:spec_decode_num_draft_tokens_total") == 5
    assert value("vllm:spec_decode_num_accepted_tokens_total") == 2
    assert value("vllm:spec_decode_num_accepted_tokens_per_pos_total", position="0") == 1
    assert value("vllm:spec_decode_num_accepted_tokens_per_pos_total", position="1") == 1
    assert ("vllm:spec_decode_num_accepted_tokens_per_pos_total", frozenset({("position", "2")})) not in values

    assert value("minedraft:state", state="degraded") == 1
    assert value("minedraft:state", state="serving") == 0
    assert value("minedraft:mode", mode="minedraft") == 1
    assert value("minedraft:mode", mode="ar") == 0
    assert value("minedraft:overlap_efficiency") == 0.9
    assert value("minedraft:exposed_drafting_seconds_total") == 0.2
    assert value("minedraft:batch_requests", batch="A") == 2
    assert summary("minedraft:batch_size", batch="A") == (2, 4)
    assert summary("minedraft:batch_size", batch="B") == (0, 0)
    assert summary("minedraft:round_draft_len") == (1, 3)
    assert math.isclose(value("minedraft:command_seconds_sum", role="verifier"), 1.0)
    assert value("minedraft:command_seconds_count", role="drafter") == 1
    assert value("minedraft:device_busy_share", role="verifier") == 0.75
    assert value("minedraft:commands_open", role="verifier") == 2
    assert value("minedraft:worker_up", role="drafter") == 0
    assert value("minedraft:worker_restarts_total", role="drafter") == 3
    assert value("minedraft:stale_replies_total") == 11
    assert value("minedraft:wire_bytes_total") == 12_345
    assert value("minedraft:errors_total", reason="OVERLOADED") == 4
    assert value("minedraft:faults_total", cause="drafter_lost") == 3
    assert value("minedraft:suspended") == 1
    assert value("minedraft:drafts_accepted_total", source="model") == 2
    assert value("minedraft:draft_rows_total", source="ngram") == 1

    histograms = {name for name, kind in types.items() if kind == "histogram"}
    assert "vllm:time_to_first_token_seconds" in histograms
    assert {name: types[name] for name in ("vllm:num_requests_running", "vllm:prompt_tokens", "minedraft:mode")} == {
        "vllm:num_requests_running": "gauge", "vllm:prompt_tokens": "counter", "minedraft:mode": "gauge",
    }  # fmt: skip


def test_a_value_on_a_bound_is_counted_below_it():
    histogram = Histogram((1, 2, 5))
    for value in (1, 1.5, 2, 5, 7):
        histogram.add(value)
    assert histogram.cumulative() == [1, 3, 4, 5]
    assert histogram.total == 16.5


def test_drafting_is_exposed_while_the_verifier_is_idle_whichever_is_told_of_first():
    def drafted(start_ms: int, end_ms: int, *, is_prefill: bool = False) -> events.Drafted:
        timing = Timing(start_ns=start_ms * MS, busy_ns=(end_ms - start_ms) * MS)
        return events.Drafted(Batch.B, 1, timing, is_prefill)

    def verified(idle_ms: int, start_ms: int, end_ms: int) -> events.Verified:
        timing = Timing(start_ns=start_ms * MS, busy_ns=(end_ms - start_ms) * MS, idle_ns=idle_ms * MS)
        return events.Verified(Batch.A, 1, timing)

    told = [
        drafted(100, 110),  # before a verify that is idle from 104 on: 6 ms are exposed
        verified(8, 112, 120),
        verified(10, 130, 140),  # idle from 120 to 130
        drafted(115, 125),  # told after it: 5 ms are exposed
        drafted(131, 139),  # hidden behind the verify
        drafted(120, 130, is_prefill=True),
    ]
    for order in (told, told[::-1]):
        devices = DeviceUse()
        for event in order:
            devices.observe(event, 0.0)
        assert math.isclose(devices.exposed_drafting_s, 0.011)
        assert math.isclose(devices.busy_s[Role.DRAFTER], 0.038)
        assert math.isclose(devices.busy_s[Role.VERIFIER], 0.018)
        assert math.isclose(devices.both_busy_s, 0.013), "5 ms of the second draft, and all of the hidden one"


def test_faults_are_counted_by_cause_and_the_end_of_a_drain_is_none():
    from minedraft.observe.faults import FaultLog

    log = FaultLog()
    for event in (
        events.WorkerLeft(Role.DRAFTER, "drafter: killed", LinkStats()),
        events.CommandFailed(Role.VERIFIER, Batch.A, 1, "no"),
        events.ProposalsDropped(Batch.A, 1, 2),
        events.DraftsNotFinite(Batch.B, 2, 3),
        events.PolicyReplaced("ValueError"),
        events.DraftingSuspended(None, "useless", 0, 8),
        events.RequestEnded(1, 0, None, "NUMERIC"),
        events.RequestEnded(2, 0, None, "DRAINING"),
        events.RequestEnded(3, 4, FinishReason.STOP),
    ):
        log.observe(event, 5.0)
    assert dict(log.counts) == {
        "drafter_dead": 1, "verifier_refused": 1, "stale_proposals": 1, "policy_failed": 1,
        "drafting_suspended": 1, "request_numeric": 1, "drafter_numeric": 1,
    }  # fmt: skip
    assert [fault.cause for fault in log.recent][:2] == ["drafter_dead", "verifier_refused"]
