"""Metrics of latency: the values of all requests, answers or gaps, in milliseconds, as the client sees them."""

from __future__ import annotations

from itertools import pairwise

from minedraft.bench.metrics.record import RequestRecord, RunRecord


def e2el_ms(run: RunRecord) -> list[float]:
    """End-to-end latency of a request: from sending it to the last piece of its last answer."""
    return [(request.end_s - request.sent_s) * 1e3 for request in run.completed]


def ttft_ms(run: RunRecord) -> list[float]:
    """Time to first token of a request: from sending it to the first piece of any of its answers."""
    return [value for request in run.completed if (value := first_token_ms(request)) is not None]


def tpot_ms(run: RunRecord) -> list[float]:
    """Time per output token of an answer: from its first piece to its last one, over its tokens less one; answers of
    one token have none."""
    return [
        (answer.pieces[-1][0] - answer.pieces[0][0]) * 1e3 / (answer.num_tokens - 1)
        for answer in run.answers
        if answer.num_tokens > 1
    ]


def itl_ms(run: RunRecord) -> list[float]:
    """Inter-token latency: between two successive pieces of an answer. A piece has the tokens of one round, so with
    drafts it is the time between rounds, as in vLLM's benchmark."""
    return [gap for answer in run.answers for gap in gaps_ms(answer.pieces)]


def first_token_ms(request: RequestRecord) -> float | None:
    """Return the time to the first token of one request."""
    at_s = request.first_token_s
    return None if at_s is None else (at_s - request.sent_s) * 1e3


def gaps_ms(pieces: tuple[tuple[float, int], ...]) -> list[float]:
    """Return the times between the pieces of one answer."""
    return [(after[0] - before[0]) * 1e3 for before, after in pairwise(pieces)]
