"""The bodies of requests: the types of the `openai` package, with what load generators and vLLM's users add to them.

Nothing is dropped in silence: an unknown field, and one that asks for something that is not done here, is refused by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Optional, Required, TypeVar

from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as _ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as _CompletionParams
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from minedraft.errors import InvalidRequest

STRICT = ConfigDict(extra="forbid", strict=True)
_B = TypeVar("_B", bound=Mapping[str, Any])


@with_config(STRICT)
class StreamOptions(ChatCompletionStreamOptionsParam, total=False):
    """What a stream tells beside the answer."""

    continuous_usage_stats: Optional[bool]  # noqa: UP045 (as in the types it stands beside)


class Additions(TypedDict, total=False):
    """Fields that are not OpenAI's; the names are vLLM's where it has them."""

    stream: Optional[bool]  # noqa: UP045 (as in the types it stands beside)
    top_k: Optional[int]  # noqa: UP045
    min_p: Optional[float]  # noqa: UP045
    repetition_penalty: Optional[float]  # noqa: UP045
    min_tokens: Optional[int]  # noqa: UP045
    stop_token_ids: Optional[list[int]]  # noqa: UP045
    ignore_eos: Optional[bool]  # noqa: UP045
    skip_special_tokens: Optional[bool]  # noqa: UP045
    speculate: Optional[bool]  # noqa: UP045
    draft_len: Optional[int]  # noqa: UP045
    return_rounds: Optional[bool]  # noqa: UP045


@with_config(STRICT)
class ChatBody(_ChatParams, Additions, total=False):
    """The body of a chat completion. Its messages are checked by role in `messages.py`."""

    messages: Required[list[dict[str, Any]]]  # type: ignore[misc]
    tools: list[dict[str, Any]]  # type: ignore[misc]
    functions: list[dict[str, Any]]  # type: ignore[misc]
    stream_options: Optional[StreamOptions]  # type: ignore[misc]  # noqa: UP045
    response_format: Optional[dict[str, Any]]  # type: ignore[misc]  # noqa: UP045
    prediction: Optional[dict[str, Any]]  # type: ignore[misc]  # noqa: UP045
    logit_bias: Optional[dict[str, float]]  # type: ignore[misc]  # noqa: UP045 (OpenAI's type has whole numbers alone)


@with_config(STRICT)
class CompletionBody(_CompletionParams, Additions, total=False):
    """The body of a text completion."""

    prompt: Required[str | list[str] | list[int] | list[list[int]]]  # type: ignore[misc]
    stream_options: Optional[StreamOptions]  # type: ignore[misc]  # noqa: UP045
    logit_bias: Optional[dict[str, float]]  # type: ignore[misc]  # noqa: UP045 (OpenAI's type has whole numbers alone)


@with_config(STRICT)
class TokenizeBody(TypedDict, total=False):
    """The body of /tokenize: a prompt, or messages."""

    model: str
    prompt: str
    messages: list[dict[str, Any]]
    add_special_tokens: bool
    add_generation_prompt: bool
    return_token_strs: bool


@with_config(STRICT)
class DetokenizeBody(TypedDict, total=False):
    """The body of /detokenize."""

    model: str
    tokens: Required[list[int]]


class BodyReader(Generic[_B]):
    """Reads bodies of one kind."""

    def __init__(self, kind: type[_B]) -> None:
        self.adapter: TypeAdapter[_B] = TypeAdapter(kind)

    def read(self, data: bytes) -> _B:
        """Return the body.

        Raises:
            InvalidRequest: it is not JSON, or a field is missing, unknown or of another type.
        """
        try:
            return self.adapter.validate_json(data)
        except ValidationError as error:
            raise refusal_of(error, "") from None


def refusal_of(error: ValidationError, where: str) -> InvalidRequest:
    """Return the first thing that is wrong, by its field. An alternative's name in the place of a field is left out."""
    details = error.errors(include_url=False, include_context=False)
    detail = min(details, key=lambda detail: len(detail["loc"]))
    path = ""
    for part in detail["loc"][1 if where else 0 :]:  # a message is checked as a list of one
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part[0].islower() and part not in ("str", "int", "float", "bool", "list", "dict"):
            path += f".{part}" if path else part
    if detail["type"] == "extra_forbidden":
        return InvalidRequest(where + path, detail["input"], "there is no such field")
    if detail["type"] == "missing":
        return InvalidRequest(where + path, None, "must be given")
    limit = detail["msg"].replace("Input should be", "must be")
    return InvalidRequest((where + path) or "body", detail["input"] if path else None, limit)
