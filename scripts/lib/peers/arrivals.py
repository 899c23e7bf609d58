"""Rates from the times at which streamed tokens arrive at the client. Times are in seconds of one monotonic clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer as the client saw it.

    Attributes:
        num_prompt_tokens: length of the prompt.
        sent_s: when the request was sent.
        arrivals_s: when each piece with tokens arrived, ascending.
        piece_lens: tokens in each piece.
        token_ids: the answer's tokens; empty if the engine does not tell them.
    """

    num_prompt_tokens: int
    sent_s: float
    arrivals_s: tuple[float, ...]
    piece_lens: tuple[int, ...]
    token_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(self.piece_lens)

    @property
    def first_token_s(self) -> float:
        """Seconds from sending the request to its first token."""
        return self.arrivals_s[0] - self.sent_s


@dataclass(frozen=True, slots=True)
class Rates:
    """What the streams of one cell show.

    Attributes:
        wall_tokens_per_s: new tokens / time from the first request sent to the last token.
        decode_tokens_per_s: rate while all answers are in flight; None if that time is too short to tell.
        prompt_tokens_per_s: prompt tokens / time from the first request sent to the last first token.
        first_token_s, last_first_token_s: median and largest time to the first token, in seconds.
        num_tokens, num_prompt_tokens: over all streams.
    """

    wall_tokens_per_s: float
    decode_tokens_per_s: float | None
    prompt_tokens_per_s: float
    first_token_s: float
    last_first_token_s: float
    num_tokens: int
    num_prompt_tokens: int


def to_rates(streams: Sequence[Stream]) -> Rates:
    """Return the rates of streams whose requests were sent together; each has at least one token."""
    began_s = min(stream.sent_s for stream in streams)
    last_first_s = max(stream.arrivals_s[0] for stream in streams)
    ended_s = max(stream.arrivals_s[-1] for stream in streams)
    firsts_s = [stream.first_token_s for stream in streams]
    num_tokens = sum(stream.num_tokens for stream in streams)
    num_prompt_tokens = sum(stream.num_prompt_tokens for stream in streams)
    return Rates(
        wall_tokens_per_s=num_tokens / max(ended_s - began_s, 1e-9),
        decode_tokens_per_s=steady_rate(streams),
        prompt_tokens_per_s=num_prompt_tokens / max(last_first_s - began_s, 1e-9),
        first_token_s=median(firsts_s),
        last_first_token_s=max(firsts_s),
        num_tokens=num_tokens,
        num_prompt_tokens=num_prompt_tokens,
    )


def steady_time(streams: Sequence[Stream]) -> tuple[float, float]:
    """Return from when to when all answers are in flight: from the last first token to the first last one."""
    return max(stream.arrivals_s[0] for stream in streams), min(stream.arrivals_s[-1] for stream in streams)


def steady_rate(streams: Sequence[Stream]) -> float | None:
    """Return tokens/s from the last first token to the first last one, summed over the streams.

    A stream counts from its own first to its own last arrival in that time: the tokens of one step reach the
    client one after the other, so that a common window would cut a step in two. None if a stream has fewer
    than two arrivals in that time, or only one arrival time.
    """
    from_s, to_s = steady_time(streams)
    total = 0.0
    for stream in streams:
        seen = [
            (at_s, size)
            for at_s, size in zip(stream.arrivals_s, stream.piece_lens, strict=True)
            if from_s <= at_s <= to_s
        ]
        if len(seen) < 2 or seen[-1][0] <= seen[0][0]:
            return None
        total += sum(size for _, size in seen[1:]) / (seen[-1][0] - seen[0][0])
    return total
