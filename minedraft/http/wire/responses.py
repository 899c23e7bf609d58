"""OpenAI's Responses: what a body asks for. Stateless: nothing is stored, and nothing stored can be continued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Required

from openai.types.responses.response_create_params import ResponseCreateParamsBase as _ResponseParams
from pydantic import with_config

from minedraft.errors import InvalidRequest
from minedraft.http.wire.asking import given_fields, grammar_of, to_params
from minedraft.http.wire.bodies import STRICT, Additions
from minedraft.http.wire.messages import Messages, check_messages
from minedraft.sampling_params import SamplingParams

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_USED = {"input", "instructions", "max_output_tokens", "text", "min_tokens"}
_PHASES = ("commentary", "final_answer")  # labels of what an assistant said before, which no template here knows
_NO_STATE = ("store", "previous_response_id", "conversation", "prompt")  # prompt: a stored template


@with_config(STRICT)
class ResponseBody(_ResponseParams, Additions, total=False):
    """The body of a response. Its items are checked by `input_messages`."""

    model: Required[str]  # type: ignore[misc]
    input: Required[str | list[dict[str, Any]]]  # type: ignore[misc]
    tools: list[dict[str, Any]]  # type: ignore[misc]
    text: dict[str, Any]  # type: ignore[misc]


def response_params(body: ResponseBody) -> SamplingParams:
    """Return the sampling parameters of a response.

    Raises:
        InvalidRequest: a value is out of range, or a field asks for something that is not done here.
    """
    for name in _NO_STATE:
        if body.get(name):
            raise InvalidRequest(name, body.get(name), "nothing is stored here; send the whole conversation as input")
    for name in ("tools", "top_logprobs", "return_rounds"):
        if body.get(name):
            raise InvalidRequest(name, body.get(name), "is not supported in responses; use /v1/chat/completions")
    if body.get("tool_choice") not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice", body["tool_choice"], "needs tools; use /v1/chat/completions")
    given = given_fields(body, _USED | {"top_logprobs", "previous_response_id", "conversation"})
    given["max_new_tokens"] = body.get("max_output_tokens")
    text = dict(body.get("text") or {})
    wanted: Any = text.pop("format", None)
    if text.pop("verbosity", None) not in (None, "medium") or text:
        raise InvalidRequest("text", body.get("text"), "only its format is supported")
    return to_params(given | _grammar(wanted))


def input_messages(body: Mapping[str, Any]) -> Messages:
    """Return the messages of the instructions and the input.

    Raises:
        InvalidRequest: an item of the input is no message of text.
    """
    asked, messages = body["input"], []
    if not asked:
        raise InvalidRequest("input", asked, "must not be empty")
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    if isinstance(asked, str):
        return check_messages([*messages, {"role": "user", "content": asked}])
    return check_messages([*messages, *[_message(f"input[{number}]", item) for number, item in enumerate(asked)]])


def _grammar(wanted: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the grammar of `text.format`, which has the fields of a `response_format` without its inner object."""
    if wanted is not None and wanted.get("type") == "json_schema":
        wanted = {"type": "json_schema", "json_schema": {key: wanted[key] for key in wanted if key != "type"}}
    try:
        return grammar_of(wanted)
    except InvalidRequest as error:
        raise InvalidRequest("text.format", error.value, error.limit) from None


def _message(where: str, item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type", "message") != "message":
        raise InvalidRequest(f"{where}.type", item.get("type"), "only messages are supported")
    for key in sorted(item.keys() - {"type", "role", "content", "id", "status", "phase"}):
        if item[key] is not None:
            raise InvalidRequest(f"{where}.{key}", item[key], "there is no such field")
    if item.get("role") not in ("user", "assistant", "system", "developer"):
        raise InvalidRequest(f"{where}.role", item.get("role"), "must be user, assistant, system or developer")
    if item.get("phase") not in (None, *_PHASES):
        raise InvalidRequest(f"{where}.phase", item["phase"], f"must be one of {', '.join(_PHASES)}")
    content = item.get("content")
    if not isinstance(content, str | list):
        raise InvalidRequest(f"{where}.content", content, "must be text or a list of text parts")
    if isinstance(content, list):
        content = "".join(_text(f"{where}.content[{number}]", part) for number, part in enumerate(content))
    return {"role": item["role"], "content": content}


def _text(where: str, part: object) -> str:
    if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else part
        raise InvalidRequest(f"{where}.type", kind, "only text is supported")
    return str(part["text"])
