"""What Prometheus shows beyond the status: histograms and counts of rounds, requests and devices. Observers."""

from __future__ import annotations

from itertools import accumulate

from minedraft.core import events
from minedraft.observe.histogram import Histogram
from minedraft.observe.request_times import RequestTimes
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import MAX_SPAN_DRAFTS, Batch, Role

_ROUND_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # vLLM's
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_COMMAND_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Meter:
    """Counts and histograms since the start of the service.

    Attributes:
        round_tokens: prompt and output tokens of a round.
        accepted_lens: how often so many drafts of a request were accepted.
        command_s: seconds that a command kept its worker's device busy, by the worker's role.
        draft_lens: the most drafts of one request, in each round that had some.
    """

    def __init__(self) -> None:
        self.requests = RequestTimes()
        self.round_tokens = Histogram(_ROUND_TOKENS)
        self.batch_sizes = {batch: Histogram(_REQUESTS) for batch in Batch}
        self.draft_lens = Histogram(range(1, MAX_DRAFT_LEN + 1))
        self.command_s = {role: Histogram(_COMMAND_S) for role in Role}
        self.accepted_lens = [0] * (MAX_SPAN_DRAFTS + 1)
        self._prompt_tokens: dict[int, int] = {}  # of rounds that are planned and not ended

    def accepted_at(self) -> list[int]:
        """Return, for each position of a draft up to the last one with any, how often the draft there was accepted."""
        at_least = list(accumulate(reversed(self.accepted_lens)))[::-1]  # drafts
        return [count for count in at_least[1:] if count]

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        self.requests.observe(event, now_s)
        match event:
            case events.RoundPlanned():
                self._prompt_tokens[event.number] = event.num_prompt_tokens
                if event.depth:
                    self.draft_lens.add(event.depth)
            case events.Drafted():
                self.command_s[Role.DRAFTER].add(event.timing.busy_ns / 1e9)
            case events.Verified():
                self.command_s[Role.VERIFIER].add(event.timing.busy_ns / 1e9)
            case events.RoundCommitted():
                num_tokens = self._prompt_tokens.pop(event.number, 0) + event.num_output_tokens
                self.round_tokens.add(num_tokens)
                self.batch_sizes[event.batch].add(event.num_requests)
                for _, accepted_len in event.accepted:
                    self.accepted_lens[accepted_len] += 1
            case events.RoundAbandoned():
                self._prompt_tokens.pop(event.number, None)
