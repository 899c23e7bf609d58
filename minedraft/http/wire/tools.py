"""Tools: what a model must say so that a program can call a function, and the call that it has said.

The answer is JSON by a grammar, so it is a call of one of the functions, with arguments that its schema allows. The
functions are described in the system message: the templates of few models know a place for them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai.types.chat import ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion_message_function_tool_call import Function

from minedraft.errors import InvalidRequest

_MAX_TOOLS = 128


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What is to be called.

    Attributes:
        name: of the only function that may be called; the answer is then its arguments alone. None: any.
        schema: of the answer, as JSON.
        system: describes the functions.
    """

    name: str | None
    schema: str
    system: str

    @property
    def finish_reason(self) -> str:
        """OpenAI's: a call that was asked for by name is no surprise."""
        return "tool_calls" if self.name is None else "stop"

    def call_of(self, text: str) -> ChatCompletionMessageFunctionToolCall:
        """Return the call of a whole answer; of one that was cut short, what there is as arguments."""
        name, arguments = self.name or "", text
        if self.name is None:
            try:
                made = json.loads(text)
                name, arguments = made["name"], json.dumps(made["arguments"])
            except ValueError:  # the limit of tokens came first
                pass
        function = Function(name=name, arguments=arguments)
        return ChatCompletionMessageFunctionToolCall(id=f"call_{uuid.uuid4().hex}", type="function", function=function)


def plan_tools(body: Mapping[str, Any]) -> ToolPlan | None:
    """Return what is to be called; None if nothing is.

    Raises:
        InvalidRequest: a tool is no function, or whether to call one would be the model's own choice.
    """
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if not tools or choice == "none":
        if isinstance(choice, dict) or choice == "required":
            raise InvalidRequest("tool_choice", choice, "needs tools")
        return None
    if len(tools) > _MAX_TOOLS:
        raise InvalidRequest("tools", f"{len(tools)} tools", f"at most {_MAX_TOOLS} are allowed")
    if body.get("response_format", {"type": "text"}) != {"type": "text"}:
        raise InvalidRequest("response_format", body["response_format"], "cannot be had with a tool call")
    functions = [_function(number, tool) for number, tool in enumerate(tools)]
    if choice == "required":
        return ToolPlan(None, _any_of(functions), _describe(functions, None))
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = (choice.get("function") or {}).get("name")
        chosen = next((function for function in functions if function["name"] == name), None)
        if chosen is None:
            raise InvalidRequest("tool_choice", name, "names none of the tools")
        return ToolPlan(chosen["name"], json.dumps(chosen["parameters"]), _describe(functions, chosen["name"]))
    limit = 'must be "required", "none" or a function: whether to call is not left to the model here'
    raise InvalidRequest("tool_choice", choice or "auto", limit)


def with_tools(messages: Sequence[dict[str, str]], plan: ToolPlan) -> list[dict[str, str]]:
    """Return the messages with the functions described in the first one, a system message."""
    if messages and messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']}\n\n{plan.system}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": plan.system}, *messages]


def _function(number: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    where = f"tools[{number}]"
    if tool.get("type") != "function":
        raise InvalidRequest(f"{where}.type", tool.get("type"), "must be function")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequest(f"{where}.function", function, "must have a name")
    for key in function.keys() - {"name", "description", "parameters", "strict"}:
        raise InvalidRequest(f"{where}.function.{key}", function[key], "there is no such field")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}.function.parameters", parameters, "must be a JSON Schema")
    return {"name": function["name"], "description": function.get("description") or "", "parameters": parameters}


def _any_of(functions: Sequence[Mapping[str, Any]]) -> str:
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": function["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})


def _describe(functions: Sequence[Mapping[str, Any]], name: str | None) -> str:
    listed = "\n".join(json.dumps(function) for function in functions)
    how = (
        'Answer with one JSON object: {"name": the function, "arguments": an object of its parameters}.'
        if name is None
        else f"Answer with one JSON object: the arguments of {name}."
    )
    return f"You can call these functions:\n{listed}\n{how}"
