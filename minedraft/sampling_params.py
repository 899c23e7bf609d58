"""The sampling parameters of a request and their limits. Standard library only."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from minedraft.errors import InvalidRequest

DEFAULT_NEW_TOKENS = 128
DEFAULT_CHAT_TOKENS = 512
MAX_NEW_TOKENS = 1 << 20
MAX_SAMPLES = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_TOP_K = 1 << 20
MAX_DRAFT_LEN = 16  # the largest k that a service or a request can be set to
MAX_GRAMMAR_CHARS = 1 << 16
GRAMMARS = ("json_schema", "regex", "lark")
MAX_TOKEN_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Every field is applied at every position, or refused.

    A field that is None takes its default. Numbers may be numpy's.

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
        max_new_tokens: output length limit, 1 or more; refused if the context has less room.
            None: 128, after chat messages 512, or less if the context has less room.
        min_new_tokens: stop tokens cannot be chosen before this many output tokens.
        stop: strings that end the output when they appear in it; they are cut from the text. The
            text of a special token ends the output at that token.
        stop_token_ids: token ids that end the output.
        seed: makes the output reproducible, whatever other requests run (0..2**63-1); None draws one.
        n: number of independent samples of the same prompt.
        ignore_eos: do not stop at the model's end-of-sequence token.
        logprobs: None for none, else the number of top alternatives (0..20) returned with each
            chosen token's log-probability under the target.
        skip_special_tokens: leave special tokens (end of sequence, tool calls) out of the text; the
            token ids always include them.
        draft_len: most drafts per round (k) for this request, 0..16; None, and a number above the
            service's, mean the service's. The output does not depend on it.
        speculate: False decodes this request without drafts; the drafter never hears of it.
        json_schema: the output is JSON that this JSON Schema allows ("{}": any JSON). regex: the output matches it
            as a whole. lark: the output is of this grammar, in the dialect of the llguidance library. At most one of
            the three; with one, `ignore_eos` and `min_new_tokens` must be left alone, for the grammar says where the
            output may end.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    n: int = 1
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    draft_len: int | None = None
    speculate: bool = True
    json_schema: str | None = None
    regex: str | None = None
    lark: str | None = None

    def __post_init__(self) -> None:
        _fill_in(self)
        for name, low, high in _FLOAT_LIMITS:
            self._set(name, _to_float(name, getattr(self, name), low, high))
        for name, least, most in _INT_LIMITS:
            if getattr(self, name) is not None:
                self._set(name, _to_int(name, getattr(self, name), least, most))
        for name in ("ignore_eos", "skip_special_tokens", "speculate"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(name, getattr(self, name), "must be true or false")
        if self.max_new_tokens is not None:
            _to_int("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        self._set("stop", _to_stop(self.stop))
        self._set("stop_token_ids", _to_token_ids(self.stop_token_ids))
        self._set("logit_bias", _to_bias(self.logit_bias))
        _check_grammar(self)

    @property
    def grammar(self) -> tuple[str, str] | None:
        """The kind and the text of the grammar that the output must have; None if it is free."""
        return next(((kind, text) for kind in GRAMMARS if (text := getattr(self, kind)) is not None), None)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def output_limit(self) -> int:
        """`max_new_tokens` as a number, once `fit` has set it."""
        assert self.max_new_tokens is not None, "the service calls fit before it makes a request"
        return self.max_new_tokens

    def draft_limit(self, draft_len: int) -> int:
        """Return the most drafts per round for this request in a service whose number is `draft_len`."""
        if not self.speculate:
            return 0
        return draft_len if self.draft_len is None else min(draft_len, self.draft_len)

    def fit(self, room: int, default: int) -> SamplingParams:
        """Return the parameters with `max_new_tokens` set: if it is None, to `default` or `room`, if less.

        Args:
            room: tokens that the context has left after the prompt, 1 or more. A given limit is kept;
                the scheduler refuses one above `room`.

        Raises:
            InvalidRequest: `min_new_tokens` does not fit.
        """
        if self.max_new_tokens is not None:
            return self
        if self.min_new_tokens > room:
            raise InvalidRequest("min_new_tokens", self.min_new_tokens, f"at most {room} fit after the prompt")
        return replace(self, max_new_tokens=min(max(default, self.min_new_tokens), room))

    def check_token_ids(self, vocab_size: int) -> None:
        """Raise InvalidRequest unless every token id named here is in the target's vocabulary."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            for token_id in ids:
                if token_id >= vocab_size:
                    raise InvalidRequest(name, token_id, f"token ids must be below the vocabulary size {vocab_size}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


_FLOAT_LIMITS = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, 10.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
)
_ABOVE_LOW = frozenset({"top_p", "repetition_penalty"})  # the lower limit itself is not allowed
_INT_LIMITS = (
    ("top_k", 0, MAX_TOP_K),
    ("max_new_tokens", 1, MAX_NEW_TOKENS),
    ("min_new_tokens", 0, MAX_NEW_TOKENS),
    ("n", 1, MAX_SAMPLES),
    ("seed", 0, (1 << 63) - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("draft_len", 0, MAX_DRAFT_LEN),
)


def _fill_in(params: SamplingParams) -> None:
    """Give every field that is None its default."""
    for each in fields(params):
        if getattr(params, each.name) is None:
            value = each.default if each.default_factory is MISSING else each.default_factory()
            object.__setattr__(params, each.name, value)


def _check_grammar(params: SamplingParams) -> None:
    given = [kind for kind in GRAMMARS if getattr(params, kind) is not None]
    for kind in given:
        text = getattr(params, kind)
        if not isinstance(text, str):
            raise InvalidRequest(kind, text, "must be text")
        _check_count(kind, len(text), MAX_GRAMMAR_CHARS, "characters")
    if len(given) > 1:
        raise InvalidRequest(given[1], "given", f"{given[0]} is given already; an output has one grammar")
    if given and params.ignore_eos:
        raise InvalidRequest("ignore_eos", True, f"must be False with {given[0]}, which says where the output ends")
    if given and params.min_new_tokens:
        limit = f"must be 0 with {given[0]}, which says where the output may end"
        raise InvalidRequest("min_new_tokens", params.min_new_tokens, limit)


def _to_float(name: str, value: Any, low: float, high: float) -> float:  # noqa: ANN401 - what a client gave
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number:
        raise InvalidRequest(name, value, "must be a number")
    is_open = name in _ABOVE_LOW
    if not low <= value <= high or (is_open and value == low):
        raise InvalidRequest(name, value, f"must be in {'(' if is_open else '['}{low:g}, {high:g}]")
    return float(value)


def _to_int(name: str, value: Any, low: int, high: int) -> int:  # noqa: ANN401
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer:
        raise InvalidRequest(name, value, "must be an integer")
    if not low <= value <= high:
        raise InvalidRequest(name, value, f"must be in [{low}, {high}]")
    return int(value)


def _to_stop(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    texts = _to_tuple("stop", [value] if isinstance(value, str) else value, MAX_STOP_STRINGS)
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
            raise InvalidRequest("stop", text, f"each stop string must have 1 to {MAX_STOP_CHARS} characters")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidRequest("stop", text, "must be valid Unicode text")
    return texts


def _to_token_ids(value: Any) -> tuple[int, ...]:  # noqa: ANN401
    ids = _to_tuple("stop_token_ids", value, MAX_STOP_TOKEN_IDS)
    return tuple(_to_int("stop_token_ids", token_id, 0, MAX_TOKEN_ID) for token_id in ids)


def _to_bias(value: Any) -> dict[int, float]:  # noqa: ANN401
    if not isinstance(value, Mapping):
        raise InvalidRequest("logit_bias", value, "must map token ids to numbers")
    _check_count("logit_bias", len(value), MAX_LOGIT_BIAS)
    return {
        _to_int("logit_bias", token_id, 0, MAX_TOKEN_ID): _to_float(f"logit_bias[{token_id}]", bias, -100.0, 100.0)
        for token_id, bias in value.items()
    }


def _to_tuple(name: str, value: Any, limit: int) -> tuple[Any, ...]:  # noqa: ANN401
    try:
        entries = tuple(value)
    except TypeError:
        raise InvalidRequest(name, value, "must be a list") from None
    _check_count(name, len(entries), limit)
    return entries


def _check_count(name: str, count: int, limit: int, of: str = "entries") -> None:
    if count > limit:
        raise InvalidRequest(name, f"{count} {of}", f"at most {limit} are allowed")
