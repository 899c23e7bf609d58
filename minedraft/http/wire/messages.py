"""The messages of a chat: checked by role, and as a chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from pydantic import TypeAdapter, ValidationError

from minedraft.errors import InvalidRequest
from minedraft.http.wire.bodies import STRICT, refusal_of
from minedraft.http.wire.tool_text import AFTER_ARGUMENTS, AFTER_NAME, BEFORE_NAME, OPEN

Messages = list[dict[str, Any]]
"""Each has a role and its content as text; an assistant's may have `tool_calls`, a tool's has `tool_call_id`."""

_ROLES: dict[str, TypeAdapter[list[Any]]] = {
    role: TypeAdapter(list[kind], config=STRICT)  # type: ignore[valid-type]
    for role, kind in {
        "developer": ChatCompletionDeveloperMessageParam,
        "system": ChatCompletionSystemMessageParam,
        "user": ChatCompletionUserMessageParam,
        "assistant": ChatCompletionAssistantMessageParam,
        "tool": ChatCompletionToolMessageParam,
    }.items()
}


def check_messages(messages: Sequence[dict[str, Any]]) -> Messages:
    """Return chat messages with their content as text.

    Raises:
        InvalidRequest: there is no message, or one has an unknown role or field, content that is not text, or a call
            that is none.
    """
    if not messages:
        raise InvalidRequest("messages", [], "must not be empty")
    return [_check_message(f"messages[{number}]", message) for number, message in enumerate(messages)]


def uses_tools(messages: Messages) -> bool:
    """Whether the chat has called tools before."""
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def as_text(messages: Messages, system: str = "") -> list[dict[str, str]]:
    """Return the messages for a template that knows no tools: calls and results are text, and `system` is added to the
    system message."""
    plain: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
            if number and messages[number - 1]["role"] == "tool":  # several results are one turn
                content = f"{plain.pop()['content']}\n{content}"
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], json.dumps(call["function"]["arguments"])
            called = f"{OPEN}{BEFORE_NAME}{name}{AFTER_NAME}{arguments}{AFTER_ARGUMENTS}"
            content = f"{content}\n{called}" if content else called
        plain.append({"role": role, "content": content})
    if not system:
        return plain
    if plain and plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{system}"}, *plain[1:]]
    return [{"role": "system", "content": system}, *plain]


def _check_message(where: str, message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{where}.role", role, f"must be one of {', '.join(_ROLES)}")
    if role == "assistant" and message.get("tool_calls") is None and message.get("content") is None:
        raise InvalidRequest(f"{where}.content", None, "must be given")
    try:
        [checked] = _ROLES[role].validate_python([message])
        text = _text_of(where, checked.get("content"))
        calls = [dict(call) for call in checked.get("tool_calls") or ()]
    except ValidationError as error:
        raise refusal_of(error, f"{where}.") from None
    for name in checked.keys() - {"role", "content", "tool_call_id", "tool_calls"}:
        if checked[name]:
            raise InvalidRequest(f"{where}.{name}", "given", "is not supported")
    made: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": text}
    if role == "tool":
        made["tool_call_id"] = checked["tool_call_id"]
    if calls:
        made["tool_calls"] = [_call_of(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    return made


def _call_of(where: str, call: dict[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as an object, as templates take them."""
    if call.get("type") != "function":
        raise InvalidRequest(f"{where}.type", call.get("type"), "must be function")
    text = call["function"]["arguments"]
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{where}.function.arguments", text, "must be a JSON object, as text")
    function = {"name": call["function"]["name"], "arguments": arguments}
    return {"id": call["id"], "type": "function", "function": function}


def _text_of(where: str, content: Any) -> str:  # noqa: ANN401 (text, or parts that are checked while they are read)
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content or ()):
        if part["type"] != "text":
            raise InvalidRequest(f"{where}.content[{number}].type", part["type"], "only text is supported")
        texts.append(part["text"])
    return "".join(texts)
