"""Metrics of throughput."""

from __future__ import annotations

from minedraft.bench.metrics.record import RunRecord

_LEAST_S = 1e-9  # so that nothing is divided by zero


def tokens_per_s(run: RunRecord) -> float:
    """Output tokens of all answers over the time from the first request sent to the last answer, prompts included."""
    return run.num_output_tokens / max(run.duration_s, _LEAST_S)


def request_throughput(run: RunRecord) -> float:
    """Requests completed over the same time."""
    return len(run.completed) / max(run.duration_s, _LEAST_S)


def total_token_throughput(run: RunRecord) -> float:
    """Prompt and output tokens of the completed requests over the same time."""
    num = sum(request.prompt_tokens + request.num_tokens for request in run.completed)
    return num / max(run.duration_s, _LEAST_S)


def decode_only_tokens_per_s(run: RunRecord) -> float:
    """Output tokens of the rounds without prompt tokens over the duration of their steps (the paper's throughput);
    ramp and tail count, rounds before which a batch waited for requests do not."""
    return run.counts.decode_tokens / max(run.counts.decode_s, _LEAST_S)


def decode_tokens_per_s(run: RunRecord) -> float:
    """What full batches decode: m * tokens per round / median step; without prompts, ramp and tail."""
    return run.max_batch_size * mean_round_tokens(run) / max(run.steady.step_ms / 1e3, _LEAST_S)


def tokens_per_s_per_device(run: RunRecord) -> float:
    """`tokens_per_s` over the number of GPUs and CPU cores that the configuration computes on."""
    return tokens_per_s(run) / run.num_devices


def mean_round_tokens(run: RunRecord) -> float:
    """Output tokens over verify rounds, of a request: the accepted drafts and the token that the verify adds."""
    return run.num_output_tokens / max(sum(answer.rounds for answer in run.answers), 1)


def makespan_per_request_ms(run: RunRecord) -> float:
    """The time from the first request sent to the last answer over the number of requests: what the paper calls
    "E2EL". It is no request's latency."""
    return run.duration_s * 1e3 / max(len(run.completed), 1)
