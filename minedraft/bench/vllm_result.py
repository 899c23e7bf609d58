"""A run as a result of `vllm bench serve`: its keys with its definitions, for tools that read such files.

The definitions are those of vllm/benchmarks/serve.py; where ours of the same name exists, it is the same function.
"""

from __future__ import annotations

import time
from typing import Any

from minedraft.bench.metrics import acceptance, latency, throughput
from minedraft.bench.metrics.record import RunRecord
from minedraft.bench.metrics.spread import STATISTICS, spread
from minedraft.bench.traffic import Traffic
from minedraft.output import ServiceStatus
from minedraft.types import Role

_SPREADS = (latency.ttft_ms, latency.tpot_ms, latency.itl_ms, latency.e2el_ms)


def to_vllm_result(run: RunRecord, *, is_detailed: bool = False) -> dict[str, Any]:
    """Return the keys of a result. is_detailed: also the lists of each request's figures, as with --save-detailed;
    lengths of prompts and answers are always there. Lists have an entry for each request, also for failed ones."""
    result: dict[str, Any] = {
        "num_prompts": len(run.requests),
        "duration": run.duration_s,
        "completed": len(run.completed),
        "failed": len(run.requests) - len(run.completed),
        "total_input_tokens": sum(request.prompt_tokens for request in run.completed),
        "total_output_tokens": run.num_output_tokens,
        "request_throughput": throughput.request_throughput(run),
        "request_goodput": None,
        "output_throughput": throughput.tokens_per_s(run),
        "total_token_throughput": throughput.total_token_throughput(run),
        "max_concurrent_requests": most_open(run),
        "input_lens": [request.prompt_tokens for request in run.requests],
        "output_lens": [request.num_tokens for request in run.requests],
        "errors": [request.error for request in run.requests],
    }
    for compute in _SPREADS:
        figures = spread(compute(run))
        result |= {f"{kind}_{compute.__name__}": figures[kind] for kind in STATISTICS}
    if acceptance.verified_drafts(run):
        result |= {
            "spec_decode_acceptance_rate": 100 * acceptance.vsr(run),
            "spec_decode_acceptance_length": 1 + acceptance.mean_accepted_len(run),
            "spec_decode_num_drafts": acceptance.drafted_rows(run),
            "spec_decode_draft_tokens": acceptance.verified_drafts(run),
            "spec_decode_accepted_tokens": acceptance.accepted_drafts(run),
            "spec_decode_per_position_acceptance_rates": acceptance.acceptance_per_position(run),
        }
    return result | (_details(run) if is_detailed else {})


def vllm_setup(status: ServiceStatus, traffic: Traffic) -> dict[str, Any]:
    """Return the keys with which a result says what was measured and how."""
    model = next((worker.model for worker in status.workers if worker.role == Role.VERIFIER.value), "")
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "minedraft",
        "backend": "minedraft",
        "label": None,
        "model_id": model,
        "tokenizer_id": model,
        "request_rate": "inf" if traffic.rate is None else traffic.rate,
        "burstiness": traffic.burstiness,
        "max_concurrency": traffic.concurrency,
    }


def most_open(run: RunRecord) -> int:
    """Return the most requests that were open at a time."""
    changes = [(request.sent_s, 1) for request in run.requests] + [(request.end_s, -1) for request in run.requests]
    num_open = most = 0
    for _, change in sorted(changes):  # of two at the same time, the end comes first
        num_open += change
        most = max(most, num_open)
    return most


def _details(run: RunRecord) -> dict[str, Any]:
    """Times in seconds."""
    gaps_ms = [
        [gap for answer in request.answers for gap in latency.gaps_ms(answer.pieces)] for request in run.requests
    ]
    return {
        "ttfts": [(latency.first_token_ms(request) or 0.0) / 1e3 for request in run.requests],
        "itls": [[gap / 1e3 for gap in gaps] for gaps in gaps_ms],
        "latencies": [request.end_s - request.sent_s for request in run.requests],
        "start_times": [request.sent_s for request in run.requests],
    }
