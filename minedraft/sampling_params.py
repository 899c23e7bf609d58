"""What a client may ask of sampling, and the limits on it. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from minedraft.errors import InvalidRequest

MAX_NEW_TOKENS = 1 << 20
MAX_SAMPLES = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_TOP_K = 1 << 20
MAX_TOKEN_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Every field is applied at every position, or refused.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it. 0..100.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches top_p. (0, 1].
        min_p: drop tokens less probable than min_p times the most probable one. [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens already in
            prompt or output (Keskar et al. 2019). (0, 10]; 1 is off.
        presence_penalty: subtracted from logits of tokens already in the output. [-2, 2].
        frequency_penalty: the same, times the number of occurrences in the output. [-2, 2].
        logit_bias: token id -> value added to its logit, [-100, 100]; at most 1024 entries.
        max_new_tokens: output length limit; 1 or more.
        min_new_tokens: stop tokens cannot be chosen before this many output tokens.
        stop: strings that end the output when they appear in it; they are cut from the text.
        stop_token_ids: token ids that end the output.
        seed: makes the output reproducible whatever else runs (0..2**63-1); None draws one.
        n: number of independent samples of the same prompt.
        ignore_eos: do not stop at the model's end-of-sequence token.
        logprobs: None for none, else the number of top alternatives (0..20) returned beside each
            chosen token's log-probability under the target.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    n: int = 1
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_int("top_k", self.top_k, 0, MAX_TOP_K)
        _check_number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_int("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        _check_int("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        _check_int("n", self.n, 1, MAX_SAMPLES)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, (1 << 63) - 1)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_count("stop", len(self.stop), MAX_STOP_STRINGS)
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
                raise InvalidRequest("stop", text, f"each stop string has 1 to {MAX_STOP_CHARS} characters")
        _check_count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, 0, MAX_TOKEN_ID)
        _check_count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
        for token_id, bias in self.logit_bias.items():
            _check_int("logit_bias", token_id, 0, MAX_TOKEN_ID)
            _check_number(f"logit_bias[{token_id}]", bias, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    def check_token_ids(self, vocab_size: int) -> None:
        """Raise InvalidRequest when a token id named here is outside the target's vocabulary."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            for token_id in ids:
                if token_id >= vocab_size:
                    raise InvalidRequest(name, token_id, f"token ids are below the vocabulary size {vocab_size}")


def _check_number(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidRequest(name, value, "must be a finite number")
    if not low <= value <= high or (open_low and value == low):
        raise InvalidRequest(name, value, f"must be in {'(' if open_low else '['}{low:g}, {high:g}]")


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(name, value, "must be an integer")
    if not low <= value <= high:
        raise InvalidRequest(name, value, f"must be in [{low}, {high}]")


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequest(name, f"{count} entries", f"at most {limit} are allowed")
