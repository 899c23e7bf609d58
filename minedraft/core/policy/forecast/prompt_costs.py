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
    their output. Conditions are those of `Way.prompt_condition`.
    """

    def __init__(self) -> None:
        self._verify = {condition: _Mean() for condition in Condition}
        self._rough = 0.0  # seconds a token of a prefill from which nothing could be taken off
        self._draft = {condition: _Mean() for condition in Condition}
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
            self._verify[condition].add(max(seconds - rest_s, 0.0) / num_tokens)

    def drafted(self, condition: Condition, num_tokens: int, seconds: float) -> None:
        """Take the drafter's caching of committed tokens."""
        self._draft[condition].add(seconds / num_tokens)

    def verify_s(self, condition: Condition, ratios: Mapping[Condition, float]) -> float:
        """Return the verifier's seconds for a prompt token; 0 if no prompt was measured."""
        return _token_s(self._verify, condition, ratios) or self._rough

    def draft_s(self, condition: Condition, ratios: Mapping[Condition, float]) -> float:
        """Return the drafter's seconds for a committed token; 0 if none was measured."""
        return _token_s(self._draft, condition, ratios)

    @property
    def num_per_output(self) -> float:
        """Prompt tokens for each output token, of late; 0 while no request has ended."""
        return self._num_prompt / max(self._num_output, 1.0)


def _token_s(means: Mapping[Condition, _Mean], condition: Condition, ratios: Mapping[Condition, float]) -> float:
    """Return the seconds a token in a condition, from those in another one if need be; 0 if none was measured."""
    measured = [each for each in (condition, *means) if means[each].count]
    return means[measured[0]].token_s * ratios[condition] / ratios[measured[0]] if measured else 0.0
