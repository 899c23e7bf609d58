"""All metrics: their names in the JSON, their units, and their definitions, which are the docstrings of the functions
that compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minedraft.bench.metrics import acceptance, devices, latency, throughput
from minedraft.bench.metrics.record import RunRecord
from minedraft.bench.metrics.spread import STATISTICS, spread


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        compute: from the record of a run to a number or a list.
        is_spread: the JSON has each statistic of the list, as "p99_ttft_ms", and not the list.
        key: its name in the JSON, if it is not that of the function.
    """

    family: str
    unit: str
    compute: Callable[[RunRecord], Any]
    is_spread: bool = False
    key: str = ""

    @property
    def name(self) -> str:
        return self.key or self.compute.__name__

    @property
    def meaning(self) -> str:
        return " ".join((self.compute.__doc__ or "").split())

    def values(self, run: RunRecord) -> dict[str, Any]:
        """Return the entries of the JSON."""
        value = self.compute(run)
        return (
            {f"{kind}_{self.name}": at for kind, at in spread(value).items()} if self.is_spread else {self.name: value}
        )


METRICS: Sequence[Metric] = (
    Metric("throughput", "tokens/s", throughput.tokens_per_s),
    Metric("throughput", "tokens/s", throughput.tokens_per_s_per_device),
    Metric("throughput", "tokens/s", throughput.decode_only_tokens_per_s),
    Metric("throughput", "tokens/s", throughput.decode_tokens_per_s),
    Metric("throughput", "requests/s", throughput.request_throughput),
    Metric("throughput", "tokens/s", throughput.total_token_throughput),
    Metric("throughput", "ms", throughput.makespan_per_request_ms),
    Metric("throughput", "tokens", throughput.mean_round_tokens, key="tokens_per_round"),
    Metric("latency", "ms", latency.e2el_ms, is_spread=True),
    Metric("latency", "ms", latency.ttft_ms, is_spread=True),
    Metric("latency", "ms", latency.tpot_ms, is_spread=True),
    Metric("latency", "ms", latency.itl_ms, is_spread=True),
    Metric("drafts", "0..1", acceptance.vsr),
    Metric("drafts", "drafts", acceptance.mean_accepted_len),
    Metric("drafts", "rows", acceptance.accepted_len_histogram),
    Metric("drafts", "0..1", acceptance.acceptance_per_position),
    Metric("drafts", "0..1", acceptance.conditional_acceptance),
    Metric("drafts", "tokens", acceptance.verified_drafts),
    Metric("drafts", "tokens", acceptance.accepted_drafts),
    Metric("drafts", "rows", acceptance.drafted_rows),
    Metric("devices", "0..1", devices.verifier_busy),
    Metric("devices", "0..1", devices.verifier_waiting),
    Metric("devices", "0..1", devices.drafter_busy),
    Metric("devices", "0..1", devices.drafter_waiting),
    Metric("devices", "0..1", devices.devices_idle),
    Metric("devices", "s", devices.exposed_drafting_s),
    Metric("devices", "0..1", devices.overlap_efficiency),
    Metric("devices", "ms", devices.draft_ms),
    Metric("devices", "ms", devices.verify_ms),
    Metric("devices", "ms", devices.step_ms),
    Metric("devices", "ms", devices.control_overhead_ms),
    Metric("devices", "bytes", devices.wire_bytes_per_step),
    Metric("devices", "bytes", devices.feature_bytes_per_step),
)


def compute_all(run: RunRecord) -> dict[str, Any]:
    """Return every metric of a run by its name in the JSON."""
    return {name: value for metric in METRICS for name, value in metric.values(run).items()}


def metrics_table() -> str:
    """Return the definitions as a table in Markdown."""
    prefixes = "/".join(kind for kind in STATISTICS if kind not in ("std", "p50"))
    lines = ["| metric | unit | definition |", "|---|---|---|"]
    for metric in METRICS:
        name = f"`{prefixes}_{metric.name}`" if metric.is_spread else f"`{metric.name}`"
        lines.append(f"| {name} | {metric.unit} | {metric.meaning} |")
    return "\n".join(lines)
