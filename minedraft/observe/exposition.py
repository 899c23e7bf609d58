"""The metrics of the service as Prometheus reads them: names, types and labels.

Names of vLLM where the meaning is the same, so that its dashboards show this service too; `minedraft:` for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from minedraft.observe.histogram import Histogram
from minedraft.observe.metrics import Meter
from minedraft.output import ServiceStatus, WorkerState
from minedraft.types import FinishReason, Mode, Role

STATES = ("starting", "serving", "degraded", "recovering", "draining")
_END_REASONS = (*(reason.value for reason in FinishReason), "error")


@dataclass(frozen=True, slots=True)
class Page:
    """Makes the metrics of one moment.

    Args:
        model_name: the target's name; with the engine's number it labels every metric, as in vLLM.
    """

    model_name: str

    def metrics(self, status: ServiceStatus, meter: Meter) -> list[Metric]:
        """Return all metrics. It may run beside the event loop: what the meter takes meanwhile is in some and not in
        others."""
        return [
            *self._vllm_counts(status, meter),
            *self._vllm_times(meter),
            *self._service(status),
            *self._rounds(status, meter),
            *self._drafts(status),
            *self._workers(status, meter),
        ]

    def _vllm_counts(self, status: ServiceStatus, meter: Meter) -> Iterator[Metric]:
        times = meter.requests
        verifier = _worker(status, Role.VERIFIER)
        used = 1 - verifier.num_free_blocks / verifier.num_blocks if verifier and verifier.num_blocks else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests with a seat in a batch.", status.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests without a seat.", status.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Used share of the verifier's KV blocks, 0 to 1.", used)
        yield self._counter(
            "vllm:num_preemptions", "Requests that lost their seat to an older one.", status.preemptions
        )
        yield self._counter("vllm:prompt_tokens", "Prompt tokens of requests with a first token.", times.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Output tokens.", status.output_tokens)
        ends = {reason: times.ends[reason] for reason in _END_REASONS}
        yield self._counters("vllm:request_success", "Ended requests by reason.", "finished_reason", ends)
        num_drafts = sum(source.rows for source in status.sources)
        yield self._counter("vllm:spec_decode_num_drafts", "Times that a request had drafts verified.", num_drafts)
        yield self._counter("vllm:spec_decode_num_draft_tokens", "Drafts verified.", status.verified_drafts)
        yield self._counter("vllm:spec_decode_num_accepted_tokens", "Drafts accepted.", status.accepted_drafts)
        accepted = {str(position): count for position, count in enumerate(meter.accepted_at())}
        what = "Drafts accepted, by their position among a request's drafts."
        yield self._counters("vllm:spec_decode_num_accepted_tokens_per_pos", what, "position", accepted)

    def _vllm_times(self, meter: Meter) -> Iterator[Metric]:
        times = meter.requests
        for name, what, histogram in (
            ("time_to_first_token_seconds", "From arrival to the first token.", times.first_token_s),
            ("inter_token_latency_seconds", "Between two rounds that gave a request tokens.", times.inter_token_s),
            (
                "request_time_per_output_token_seconds",
                "Mean time of a request's tokens after its first one.",
                times.time_per_token_s,
            ),
            ("e2e_request_latency_seconds", "From arrival to the end.", times.e2e_s),
            ("request_queue_time_seconds", "From arrival to a seat.", times.queue_s),
            ("request_prefill_time_seconds", "From a seat to the first token.", times.prefill_s),
            ("request_decode_time_seconds", "From the first to the last token.", times.decode_s),
            ("request_inference_time_seconds", "From a seat to the last token.", times.inference_s),
            ("request_prompt_tokens", "Prompt tokens of a request.", times.prompt_lens),
            ("request_generation_tokens", "Output tokens of a request.", times.output_lens),
            ("iteration_tokens_total", "Prompt and output tokens of a round.", meter.round_tokens),
        ):
            yield self._histograms(f"vllm:{name}", what, "", {"": histogram})

    def _service(self, status: ServiceStatus) -> Iterator[Metric]:
        states = {state: float(status.state == state) for state in STATES}
        yield self._gauges("minedraft:state", "1 for the present state of the service.", "state", states)
        modes = {mode.value: float(status.mode == mode.value) for mode in Mode}
        yield self._gauges("minedraft:mode", "1 for the present mode.", "mode", modes)
        yield self._gauge("minedraft:draft_len", "Drafts per request and round (k), or the most.", status.draft_len)
        yield self._gauge("minedraft:max_batch_size", "Requests that a batch can have (m).", status.max_batch_size)
        batches = {batch.name: batch.num_requests for batch in status.batches}
        yield self._gauges("minedraft:batch_requests", "Requests with a seat in a batch.", "batch", batches)
        yield self._gauge("minedraft:uptime_seconds", "Since the start of the service.", status.uptime_s)
        yield self._gauge("minedraft:suspended", "1 while drafting is suspended.", float(bool(status.suspended)))
        yield self._gauge("minedraft:suspended_requests", "Requests without drafts of use.", status.num_suspended)
        doors = dict.fromkeys(status.absent.split(), 1.0)
        yield self._gauges("minedraft:absent", "1 for a process that should run and does not.", "process", doors)
        yield self._counters("minedraft:errors", "Failed calls by reason.", "reason", status.errors)
        yield self._counters("minedraft:faults", "Faults by cause.", "cause", status.faults)
        yield self._counter("minedraft:stale_replies", "Replies and proposals of other rounds.", status.stale_replies)
        yield self._counter("minedraft:wire_bytes", "Bytes between scheduler and workers.", status.wire_bytes)
        yield self._counter("minedraft:feature_bytes", "Bytes of features for the drafter.", status.feature_bytes)

    def _rounds(self, status: ServiceStatus, meter: Meter) -> Iterator[Metric]:
        yield self._gauge(
            "minedraft:overlap_efficiency",
            "max(draft, verify) / step, of recent rounds, 0 to 1.",
            status.overlap_efficiency,
        )
        yield self._gauge(
            "minedraft:control_overhead_seconds",
            "Median of step - max(draft, verify), of recent rounds.",
            status.control_overhead_ms / 1e3,
        )
        yield self._gauge(
            "minedraft:step_seconds", "Median from one round to the next, of recent rounds.", status.step_ms / 1e3
        )
        yield self._counter(
            "minedraft:exposed_drafting_seconds",
            "Time that the verifier was idle while the drafter drafted.",
            status.exposed_drafting_s,
        )
        rounds = {batch.name: batch.rounds for batch in status.batches}
        yield self._counters("minedraft:rounds", "Committed rounds.", "batch", rounds)
        yield self._counter("minedraft:steps", "Forwards of the target; several in a round of mode ar.", status.steps)
        sizes = {batch.name: histogram for batch, histogram in meter.batch_sizes.items()}
        yield self._histograms("minedraft:batch_size", "Requests of a round.", "batch", sizes)

    def _drafts(self, status: ServiceStatus) -> Iterator[Metric]:
        rows = {source.name: source.rows for source in status.sources}
        verified = {source.name: source.verified_drafts for source in status.sources}
        accepted = {source.name: source.accepted_drafts for source in status.sources}
        yield self._counters("minedraft:draft_rows", "Times that a request had drafts.", "source", rows)
        yield self._counters("minedraft:drafts_verified", "Drafts verified.", "source", verified)
        yield self._counters("minedraft:drafts_accepted", "Drafts accepted.", "source", accepted)
        yield self._counter("minedraft:runs_ahead", "Requests and rounds with a run ahead.", status.runs_ahead)
        yield self._counter("minedraft:used_runs", "Runs ahead whose drafts were of use.", status.used_runs)

    def _workers(self, status: ServiceStatus, meter: Meter) -> Iterator[Metric]:
        of_role = {worker.role: worker for worker in status.workers}
        up = {role: float(worker.state == "ready") for role, worker in of_role.items()}
        yield self._gauges("minedraft:worker_up", "1 while the worker is connected.", "role", up)
        restarts = {role: worker.restarts for role, worker in of_role.items()}
        yield self._counters("minedraft:worker_restarts", "Times that a worker came back.", "role", restarts)
        busy = {role: worker.busy for role, worker in of_role.items()}
        what = "Share of the time that the device works, of recent rounds, 0 to 1."
        yield self._gauges("minedraft:device_busy_share", what, "role", busy)
        queued = {role: worker.num_queued for role, worker in of_role.items()}
        yield self._gauges("minedraft:commands_open", "Commands sent and not answered.", "role", queued)
        blocks = {role: worker.num_blocks for role, worker in of_role.items()}
        free = {role: worker.num_free_blocks for role, worker in of_role.items()}
        yield self._gauges("minedraft:kv_blocks", "KV blocks.", "role", blocks)
        yield self._gauges("minedraft:kv_blocks_free", "KV blocks of no request.", "role", free)
        commands = {role.value: histogram for role, histogram in meter.command_s.items()}
        what = "Time that a command keeps the device busy."
        yield self._histograms("minedraft:command_seconds", what, "role", commands)
        yield self._histograms(
            "minedraft:round_draft_len", "The most drafts of one request in a round.", "", {"": meter.draft_lens}
        )

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        return self._gauges(name, what, "", {"": value})

    def _counter(self, name: str, what: str, value: float) -> Metric:
        return self._counters(name, what, "", {"": value})

    def _gauges(self, name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(name, what, labels=self._labels(label))
        for key, value in values.items():
            family.add_metric(self._values(label, key), value)
        return family

    def _counters(self, name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(name, what, labels=self._labels(label))
        for key, value in values.items():
            family.add_metric(self._values(label, key), value)
        return family

    def _histograms(self, name: str, what: str, label: str, values: Mapping[str, Histogram]) -> Metric:
        family = HistogramMetricFamily(name, what, labels=self._labels(label))
        for key, histogram in values.items():
            bounds: Iterable[str] = [*map(floatToGoString, histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, histogram.cumulative(), strict=True))
            family.add_metric(self._values(label, key), buckets, histogram.total)
        return family

    def _labels(self, label: str) -> list[str]:
        return ["model_name", "engine", *([label] if label else [])]

    def _values(self, label: str, value: str) -> list[str]:
        return [self.model_name, "0", *([value] if label else [])]


def _worker(status: ServiceStatus, role: Role) -> WorkerState | None:
    return next((worker for worker in status.workers if worker.role == role.value), None)
