"""Tools: which of them an answer may call, the grammar that makes its calls usable, and how the model is told.

Whether to call one is the model's own choice unless the client made it. As soon as the answer opens a call, the grammar
lets it name only tools that there are, with arguments that their schemas allow; and what it leaves no choice about, the
braces and most of a name, costs no forward. Each schema stands for itself, so its `$ref` are found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minedraft.errors import InvalidRequest
from minedraft.http.wire.tool_text import AFTER_ARGUMENTS, AFTER_NAME, BEFORE_NAME, CLOSE, OPEN

MAX_TOOLS = 128
MAX_CALLS = 8
"""Calls in one answer, for clients that allow several."""
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as in training


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What an answer may call.

    Attributes:
        functions: all that the model is told of, as `{"name", "description", "parameters"}`.
        callable_names: those that it may call.
        must_call: the answer is calls alone. is_named: it is a call of the one function that the client named.
        max_calls: in one answer.
    """

    functions: Sequence[Mapping[str, Any]]
    callable_names: frozenset[str]
    must_call: bool = False
    is_named: bool = False
    max_calls: int = MAX_CALLS

    @property
    def finish_reason(self) -> str:
        """OpenAI's, of an answer with calls: one that was asked for by name is no surprise."""
        return "stop" if self.is_named else "tool_calls"

    @property
    def as_tools(self) -> list[dict[str, Any]]:
        """The functions as chat templates take them."""
        return [{"type": "function", "function": dict(function)} for function in self.functions]

    def grammar(self, is_tag_special: bool, answer_schema: str | None = None) -> str:
        """Return the Lark grammar of an answer.

        Args:
            is_tag_special: the tags are tokens of their own, which no text has.
            answer_schema: JSON Schema of an answer that calls nothing; None: it is free text.
        """
        opening, closing = (OPEN, CLOSE) if is_tag_special else (_quoted(OPEN), _quoted(CLOSE))
        calls = "call" if self.max_calls == 1 else f'call ("\\n" {opening} call){{0,{self.max_calls - 1}}}'
        rules = [f"PLAIN: /(.|\\n)+/ & ~/(.|\\n)*{OPEN}(.|\\n)*/"] if not self.must_call else []
        if self.must_call:
            start = f"{opening} {calls}"
        elif answer_schema is not None:
            start = f"answer | {opening} {calls}"
            rules = [f"answer: %json {answer_schema}"]
        elif is_tag_special:
            start = f"PLAIN? ({opening} {calls})?"
        else:  # the tag is text: the first one that comes ends the free text, however far that could go on
            start = f"PLAIN? | before {calls}"
            rules.append(f"before[lazy]: /(.|\\n)*{OPEN}/")
        chosen = [function for function in self.functions if function["name"] in self.callable_names]
        names = " | ".join(f"call_{number}" for number in range(len(chosen)))
        end = AFTER_ARGUMENTS.removesuffix(CLOSE)
        rules.append(f"call: {_quoted(BEFORE_NAME)} ({names}) {_quoted(end)} {closing}")
        for number, function in enumerate(chosen):
            rules.append(f"call_{number}: {_quoted(function['name'] + AFTER_NAME)} arguments_{number}")
            rules.append(f"arguments_{number}: %json {json.dumps({**function['parameters'], 'x-guidance': _COMPACT})}")
        return "\n".join([f"start: {start}", *rules, ""])


def plan_tools(body: Mapping[str, Any]) -> ToolPlan | None:
    """Return what may be called; None if nothing may.

    Raises:
        InvalidRequest: a tool is no function, or the choice names none of them.
    """
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if not tools or choice == "none":
        if isinstance(choice, dict) or choice == "required":
            raise InvalidRequest("tool_choice", choice, "needs tools")
        return None
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest("tools", f"{len(tools)} tools", f"at most {MAX_TOOLS} are allowed")
    functions = [_function(number, tool) for number, tool in enumerate(tools)]
    names = frozenset(function["name"] for function in functions)
    if len(names) < len(functions):
        raise InvalidRequest("tools", [function["name"] for function in functions], "each name must be there once")
    max_calls = MAX_CALLS if body.get("parallel_tool_calls") in (None, True) else 1
    if choice in (None, "auto"):
        return ToolPlan(functions, names, max_calls=max_calls)
    if choice == "required":
        return ToolPlan(functions, names, must_call=True, max_calls=max_calls)
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = str((choice.get("function") or {}).get("name"))
        if name not in names:
            raise InvalidRequest("tool_choice", name, f"names none of the tools: {', '.join(sorted(names))}")
        return ToolPlan(functions, frozenset([name]), must_call=True, is_named=True, max_calls=1)
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return _allowed(functions, choice.get("allowed_tools") or {}, max_calls)
    raise InvalidRequest("tool_choice", choice, 'must be "auto", "required", "none", a function or allowed_tools')


def describe(plan: ToolPlan) -> str:
    """Return what a model is told whose template knows no tools."""
    listed = "\n".join(json.dumps(function) for function in plan.functions)
    how = "Call one" if plan.must_call else "If one of them helps, call it; otherwise answer in plain text. Call one"
    form = f'{OPEN}{BEFORE_NAME}NAME{AFTER_NAME}{{"ARGUMENT": VALUE}}{AFTER_ARGUMENTS}'
    return f"You can call these functions:\n{listed}\n{how} by writing:\n{form}"


def _allowed(functions: Sequence[Mapping[str, Any]], allowed: Mapping[str, Any], max_calls: int) -> ToolPlan:
    """Return the plan of a choice that lists the tools that may be called."""
    known = {function["name"] for function in functions}
    named = [str((tool.get("function") or {}).get("name")) for tool in allowed.get("tools") or []]
    where = "tool_choice.allowed_tools"
    if not named or (unknown := [name for name in named if name not in known]):
        value = unknown if named else named
        raise InvalidRequest(f"{where}.tools", value, f"must name some of the tools: {', '.join(sorted(known))}")
    if (mode := allowed.get("mode")) not in ("auto", "required"):
        raise InvalidRequest(f"{where}.mode", mode, "must be auto or required")
    return ToolPlan(functions, frozenset(named), must_call=mode == "required", max_calls=max_calls)


def _function(number: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    where = f"tools[{number}]"
    if tool.get("type") != "function":
        raise InvalidRequest(f"{where}.type", tool.get("type"), "must be function")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest(f"{where}.function", function, "must be an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"{where}.function.name", name, "must be 1 to 64 letters, digits, _ or -")
    for key in sorted(function.keys() - {"name", "description", "parameters", "strict"}):
        raise InvalidRequest(f"{where}.function.{key}", function[key], "there is no such field")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}.function.parameters", parameters, "must be a JSON Schema")
    return {"name": name, "description": function.get("description") or "", "parameters": parameters}


def _quoted(text: str) -> str:
    return json.dumps(text)
