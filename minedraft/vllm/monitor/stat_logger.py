"""The plugin's counters in vLLM's own /metrics (entry point group `vllm.stat_logger_plugins`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import StatLoggerBase

from minedraft.vllm.monitor.status_file import read_statuses

logger = logging.getLogger("minedraft.vllm")

_COUNTERS = {
    "steps": "Steps with a forward of the target.",
    "drafted_steps": "Steps that verified drafts.",
    "blocked_steps": "Steps that waited for drafts.",
    "late_steps": "Steps that gave up waiting for drafts.",
    "moved_requests": "Requests that changed their group.",
    "exposed_seconds": "Drafting time that no forward of the target hid.",
    "verify_seconds": "Time of forwards of the target.",
}
_GAUGES = {
    "overlap_efficiency": "The longer of draft and verify, as a part of a step's time.",
    "draft_seconds": "Median time of a draft.",
    "step_seconds": "Median time of a step.",
    "drafter_up": "Whether there is a drafter.",
}
_POSITIONS = {
    "tried": "Drafts that were verified, by position.",
    "accepted": "Drafts that were accepted, by position.",
}


class StatusCollector(Collector):
    """Reads the engine core's numbers when /metrics is asked for."""

    def __init__(self, engine_id: str) -> None:
        self._engine_id = engine_id

    def collect(self) -> Iterator[Metric]:
        statuses = read_statuses(self._engine_id)
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"minedraft_vllm_{name}", text, labels=["engine"])
            for rank, status in statuses.items():
                counter.add_metric([rank], status[name])
            yield counter
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"minedraft_vllm_{name}", text, labels=["engine"])
            for rank, status in statuses.items():
                gauge.add_metric([rank], status[name])
            yield gauge
        for name, text in _POSITIONS.items():
            counter = CounterMetricFamily(f"minedraft_vllm_{name}_drafts", text, labels=["engine", "position"])
            for rank, status in statuses.items():
                for position, count in enumerate(status[name]):
                    counter.add_metric([rank, str(position)], count)
            yield counter


class MineDraftStatLogger(StatLoggerBase):
    """Adds the collector when vLLM makes its loggers. In an engine without the plugin it does nothing."""

    _served: str | None = None  # the engine whose numbers are shown

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:  # noqa: ANN401
        kind = type(self)
        if "minedraft" not in vllm_config.additional_config or kind._served is not None:
            return
        kind._served = vllm_config.instance_id
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            logger.warning("with several API servers /metrics has no numbers of the plugin; /minedraft/status has")
            return
        REGISTRY.register(StatusCollector(vllm_config.instance_id))

    def record(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """The engine core counts."""

    def log_engine_initialized(self) -> None:
        """There is nothing to say."""
