"""What prompts cost for each output token: learnt from prefills and from the requests that have ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minedraft.core.policy.forecast.conditions import Condition

_FOLLOW = 0.05  # least weight of a new measurement
_FADE = 0.98  # weight that older requests keep with each one that ends


@dataclass(slots=True)
class _Mean:
    """Seconds a token."""

    token_s: float = 0.0
    count: int = 0

    def add(self, token_s: float) -> None:
        self.count += 1
        self.token_s += max(1 / self.count, _FOLLOW) * (token_s - self.token_s)


class PromptCosts:
    """Learns what a token of a prompt takes each worker, and how many of them there are for each output token.

    Both counts are of requests that have ended: those that have just begun have had all of their prompt, and little of
    their output. A prompt is taken to cost the same in turns and overlapped: a difference of noise would choose the
    mode.
    """

    def __init__(self) -> None:
        self._verify = {is_wide: _Mean() for is_wide in (False, True)}
        self._rough = 0.0  # seconds a token of a prefill from which nothing could be taken off
        self._draft = _Mean()
        self._prompt_lens: dict[int, int] = {}  # of live requests
        self._num_prompt, self._num_output = 0.0, 0.0

    def queued(self, request_id: int, prompt_len: int) -> None:
        """Take a new request."""
        self._prompt_lens[request_id] = prompt_len

    def ended(self, request_id: int, output_len: int) -> None:
        """Take the end of a request."""
        prompt_len = self._prompt_lens.pop(request_id, 0)
        if output_len:
            self._num_prompt = _FADE * self._num_prompt + prompt_len
            self._num_output = _FADE * self._num_output + output_len

    def verified(self, condition: Condition, num_tokens: int, seconds: float, rest_s: float | None) -> None:
        """Take a verify with prompt tokens. rest_s: what it would have taken without them; None if that is unknown."""
        if rest_s is None:
            self._rough = seconds / num_tokens
        else:
            self._verify[condition is Condition.WIDE].add(max(seconds - rest_s, 0.0) / num_tokens)

    def drafted(self, num_tokens: int, seconds: float) -> None:
        """Take the drafter's caching of committed tokens."""
        self._draft.add(seconds / num_tokens)

    def verify_s(self, condition: Condition, ratios: Mapping[Condition, float]) -> float:
        """Return the verifier's seconds for a prompt token; 0 if no prompt was measured."""
        is_wide = condition is Condition.WIDE
        own, other = self._verify[is_wide], self._verify[not is_wide]
        if own.count or not other.count:
            return own.token_s or self._rough
        ratio = ratios[Condition.WIDE] / ratios[Condition.ALONE]
        return other.token_s * (ratio if is_wide else 1 / ratio)

    @property
    def draft_s(self) -> float:
        """The drafter's seconds for a committed token; 0 if none was measured."""
        return self._draft.token_s

    @property
    def num_per_output(self) -> float:
        """Prompt tokens for each output token, of late; 0 while no request has ended."""
        return self._num_prompt / max(self._num_output, 1.0)
