"""The three kinds of prompt, and the checks of a request that need no model."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any

from minedraft.errors import InvalidRequest
from minedraft.sampling_params import MAX_TOKEN_ID, SamplingParams

MAX_PROMPT_BYTES = 3 << 18
MAX_PROMPT_TOKENS = 1 << 18
MAX_CHAT_MESSAGES = 1024
MAX_REQUEST_ID_CHARS = 64
MAX_ROLE_CHARS = 64
MAX_INTERVAL_S = 1.0
MAX_TIMEOUT_S = 1e9  # gRPC treats a deadline beyond the range of its clock as passed

_TOKEN_ID_LIMIT = f"each token id must be an integer in [0, {MAX_TOKEN_ID}]"

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or chat messages with the keys "role" and "content"."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[dict[str, str], ...]


AnyPrompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One Generate request; with an empty `request_id` the server chooses one. timeout_s: seconds from its arrival
    after which the service ends the answer; None for no deadline. interval_s: least seconds between two pieces of it,
    but before its end; 0: the service chooses. trace_headers: the W3C trace context that came with it (traceparent,
    tracestate)."""

    prompt: AnyPrompt
    sampling: SamplingParams
    request_id: str = ""
    timeout_s: float | None = None
    interval_s: float = 0.0
    trace_headers: tuple[tuple[str, str], ...] = ()


def to_call(prompt: Prompt, params: SamplingParams | None, request_id: str | None) -> GenerateCall:
    """Return the request that a client makes, checked as far as that needs no model.

    Args:
        params: None for the defaults.
        request_id: None or empty for a random one.

    Raises:
        InvalidRequest: naming field, value and limit.
    """
    if params is None:
        params = SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequest("params", params, "must be SamplingParams, or None for the defaults")
    request_id = check_request_id(request_id) if request_id is not None else ""
    return GenerateCall(to_prompt(prompt), params, request_id or uuid.uuid4().hex)


def check_request_id(request_id: str) -> str:
    """Return the id. Raise InvalidRequest unless it is short, printable text."""
    if (
        not isinstance(request_id, str)
        or len(request_id) > MAX_REQUEST_ID_CHARS
        or not request_id.isprintable()  # lone surrogates are not printable either
    ):
        raise InvalidRequest(
            "request_id", request_id, f"must be text of at most {MAX_REQUEST_ID_CHARS} printable characters"
        )
    return request_id


def check_timeout(timeout_s: float | None) -> float | None:
    """Return the seconds until a deadline as gRPC takes them, None for no deadline. Raise InvalidRequest unless
    they are a number of 0 or more."""
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, Real) or not timeout_s >= 0:
        raise InvalidRequest("timeout_s", timeout_s, "must be a number of seconds, 0 or more, or None for no deadline")
    return float(min(timeout_s, MAX_TIMEOUT_S))


def check_interval(interval_s: float) -> float:
    """Return the seconds between two pieces. Raise InvalidRequest unless they are a number from 0 to MAX_INTERVAL_S."""
    is_number = isinstance(interval_s, Real) and not isinstance(interval_s, bool)
    if not is_number or not 0 <= interval_s <= MAX_INTERVAL_S:
        raise InvalidRequest("interval_s", interval_s, f"must be a number of seconds, 0 to {MAX_INTERVAL_S:g}")
    return float(interval_s)


def check_patience(patience_s: float) -> float:
    """Return the seconds. Raise InvalidRequest unless they are a number of 0 or more."""
    if isinstance(patience_s, bool) or not isinstance(patience_s, Real) or not patience_s >= 0:
        raise InvalidRequest("patience_s", patience_s, "must be a number of seconds, 0 or more")
    return float(patience_s)


def to_prompt(prompt: Prompt) -> AnyPrompt:
    """Return the prompt as one of the three kinds, checked as far as that needs no model.

    Raises:
        InvalidRequest: the prompt is empty, too large, of another type or a mixture.
    """
    if isinstance(prompt, str):
        return check_text(TextPrompt(prompt))
    entries = _to_list(prompt)
    if not entries:
        raise InvalidRequest("prompt", [], "must not be empty")
    if isinstance(entries[0], Mapping):
        return check_chat(ChatPrompt(tuple(_to_message(message) for message in entries)))
    return check_token_ids(TokenPrompt(tuple(_to_token_id(token_id) for token_id in entries)))


def check_text(prompt: TextPrompt) -> TextPrompt:
    if not prompt.text:
        raise InvalidRequest("prompt", "", "must not be empty")
    _check_bytes(_num_bytes(prompt.text))
    return prompt


def check_token_ids(prompt: TokenPrompt) -> TokenPrompt:
    if not prompt.token_ids:
        raise InvalidRequest("prompt", [], "must not be empty")
    if len(prompt.token_ids) > MAX_PROMPT_TOKENS:
        raise too_many_tokens(len(prompt.token_ids))
    for token_id in prompt.token_ids:
        if not 0 <= token_id <= MAX_TOKEN_ID:
            raise InvalidRequest("prompt", token_id, _TOKEN_ID_LIMIT)
    return prompt


def check_chat(prompt: ChatPrompt) -> ChatPrompt:
    if not prompt.messages:
        raise InvalidRequest("prompt", [], "must not be empty")
    if len(prompt.messages) > MAX_CHAT_MESSAGES:
        raise too_many_messages(len(prompt.messages))
    for message in prompt.messages:
        if not 1 <= len(message["role"]) <= MAX_ROLE_CHARS:
            limit = f"a message's role must have 1 to {MAX_ROLE_CHARS} characters"
            raise InvalidRequest("prompt", message["role"], limit)
        _num_bytes(message["role"])
    _check_bytes(sum(_num_bytes(message["content"]) for message in prompt.messages))
    return prompt


def _num_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("prompt", text[error.start : error.end], "must be valid Unicode text") from None


def _check_bytes(num_bytes: int) -> None:
    if num_bytes > MAX_PROMPT_BYTES:
        raise InvalidRequest("prompt", f"{num_bytes} bytes", f"at most {MAX_PROMPT_BYTES} bytes are allowed")


def _to_list(prompt: Any) -> list[Any]:  # noqa: ANN401 - a caller may give anything
    """Return the entries of a list or of another library's array, which is not a `Sequence`."""
    if not isinstance(prompt, (bytes, bytearray, memoryview, Mapping)) and hasattr(prompt, "__getitem__"):
        with suppress(TypeError):  # an array of no dimensions has no length
            if (count := len(prompt)) > MAX_PROMPT_TOKENS:
                raise too_many_tokens(count)
            return list(prompt)
    raise InvalidRequest("prompt", prompt, "must be a string, a list of token ids or a list of messages")


def _to_token_id(value: object) -> int:
    """Return the id as an int. Other libraries' integers are allowed; true and false are not."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)  # type: ignore[arg-type]
    raise InvalidRequest("prompt", value, _TOKEN_ID_LIMIT)


def _to_message(message: object) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise InvalidRequest("prompt", message, 'each message must have exactly the keys "role" and "content"')
    for key in ("role", "content"):
        if not isinstance(message[key], str):
            raise InvalidRequest("prompt", message[key], f"a message's {key} must be a string")
    return dict(message)


def too_many_tokens(count: int) -> InvalidRequest:
    return InvalidRequest("prompt", f"{count} tokens", f"at most {MAX_PROMPT_TOKENS} tokens are allowed")


def too_many_messages(count: int) -> InvalidRequest:
    return InvalidRequest("prompt", f"{count} messages", f"at most {MAX_CHAT_MESSAGES} messages are allowed")
