"""Where the time of each request went: an observer with one histogram for each part of its life.

The parts and their bounds are those of vLLM's metrics, so that dashboards made for it show the same:

    arrival -- queue --> first seat -- prefill --> first token -- decode --> last token
               `------------------ inference: from the first seat on ------'
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from minedraft.core import events
from minedraft.observe.histogram import Histogram

_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_PER_TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))


@dataclass(slots=True)
class _Live:
    """A live request. Times in seconds on the scheduler's monotonic clock."""

    prompt_len: int
    arrived_s: float
    seated_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float = 0.0
    num_tokens: int = 0


class RequestTimes:
    """The histograms of all requests since the start; times in seconds.

    Attributes:
        first_token_s, e2e_s: since arrival. inter_token_s: between two rounds that gave a request tokens.
        time_per_token_s: mean of a request's output tokens after the first one.
        prompt_tokens: of the requests that have got a token.
        ends: ended requests by the reason: "stop", "length", "abort" or "error".
    """

    def __init__(self) -> None:
        self.first_token_s = Histogram(_FIRST_TOKEN_S)
        self.inter_token_s = Histogram(_PER_TOKEN_S)
        self.time_per_token_s = Histogram(_PER_TOKEN_S)
        self.e2e_s = Histogram(_REQUEST_S)
        self.queue_s = Histogram(_REQUEST_S)
        self.prefill_s = Histogram(_REQUEST_S)
        self.decode_s = Histogram(_REQUEST_S)
        self.inference_s = Histogram(_REQUEST_S)
        self.prompt_lens = Histogram(_TOKENS)
        self.output_lens = Histogram(_TOKENS)
        self.prompt_tokens = 0
        self.ends: Counter[str] = Counter()
        self._live: dict[int, _Live] = {}

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.RoundCommitted():
                for request_id, num_tokens in event.grown:
                    if (live := self._live.get(request_id)) is not None:  # else it has ended with this round
                        self._grow(live, num_tokens, now_s)
            case events.RequestQueued():
                self._live[event.request_id] = _Live(event.prompt_len, now_s)
            case events.RequestSeated():
                live = self._live.get(event.request_id)
                if live is not None and live.seated_s is None:  # not again, after a preemption
                    live.seated_s = now_s
            case events.RequestEnded():
                live = self._live.pop(event.request_id, None)
                self.ends[event.reason.value if event.reason is not None else "error"] += 1
                if live is not None:
                    if event.output_len > live.num_tokens:
                        self._grow(live, event.output_len - live.num_tokens, now_s)
                    self._end(live, now_s)

    def _grow(self, live: _Live, num_tokens: int, now_s: float) -> None:
        if live.first_token_s is None:
            live.first_token_s = now_s
            self.first_token_s.add(now_s - live.arrived_s)
            self.prompt_tokens += live.prompt_len
        else:
            self.inter_token_s.add(now_s - live.last_token_s)
        live.last_token_s = now_s
        live.num_tokens += num_tokens

    def _end(self, live: _Live, now_s: float) -> None:
        if live.seated_s is None or live.first_token_s is None:
            return
        decode_s = live.last_token_s - live.first_token_s
        self.e2e_s.add(now_s - live.arrived_s)
        self.queue_s.add(live.seated_s - live.arrived_s)
        self.prefill_s.add(live.first_token_s - live.seated_s)
        self.decode_s.add(decode_s)
        self.inference_s.add(live.last_token_s - live.seated_s)
        self.prompt_lens.add(live.prompt_len)
        self.output_lens.add(live.num_tokens)
        if live.num_tokens > 1:
            self.time_per_token_s.add(decode_s / (live.num_tokens - 1))
