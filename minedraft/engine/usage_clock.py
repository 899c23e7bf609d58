"""The times of a live request, for the usage that its client gets at the end."""

from __future__ import annotations

from minedraft.core.request import Request
from minedraft.output import RequestUsage


class UsageClock:
    """The times of one live request, in seconds on the clock of the caller."""

    def __init__(self, arrived_s: float) -> None:
        self._arrived_s = arrived_s
        self._started_s: float | None = None
        self._first_token_s: float | None = None

    def start(self, now_s: float) -> None:
        """Record that the request is part of a round; only the first call counts."""
        if self._started_s is None:
            self._started_s = now_s

    def on_tokens(self, now_s: float) -> None:
        if self._first_token_s is None:
            self._first_token_s = now_s

    def finish(self, request: Request, now_s: float) -> RequestUsage:
        def since_arrival(moment_s: float | None) -> float:
            return (now_s if moment_s is None else moment_s) - self._arrived_s

        return RequestUsage(
            prompt_tokens=request.spec.prompt_len,
            output_tokens=request.output_len,
            rounds=request.num_rounds,
            drafted_tokens=request.num_drafted,
            accepted_tokens=request.num_accepted,
            forced_tokens=request.num_forced,
            queue_s=since_arrival(self._started_s),
            first_token_s=since_arrival(self._first_token_s),
            total_s=now_s - self._arrived_s,
        )
