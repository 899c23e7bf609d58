"""Tools: the grammar of answers that may call them, how an answer is taken apart, and what the model is told."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from minedraft.errors import InvalidRequest
from minedraft.http.wire.asking import chat_params, chat_prompt
from minedraft.http.wire.messages import as_text, check_messages
from minedraft.http.wire.tool_text import Call, CallStart, ToolText, join_parts, whole_answer
from minedraft.http.wire.tools import ToolPlan, describe, plan_tools
from minedraft.text.tokenizer import Tokenizer
from tests.support.tiny_models import write_tiny_tokenizer

PLACE = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/at"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"at": {"enum": ["x", "y"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": PLACE}},
    {"type": "function", "function": {"name": "find_all"}},
]
FIND = '<tool_call>\n{"name": "find", "arguments": {"at": "x"}}\n</tool_call>'
FIND_ALL = '<tool_call>\n{"name": "find_all", "arguments": {}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "find", "arguments": {"at": "z"}}\n</tool_call>'
HISTORY = [
    {"role": "user", "content": "where"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"at": "x"}'}},
            {"id": "2", "type": "function", "function": {"name": "find_all", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "here"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "there"}]},
]
KNOWING = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}{% for m in messages %}<{{ m.role }}>"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}"
)


def plan(**fields: Any) -> ToolPlan:
    made = plan_tools({"tools": TOOLS} | fields)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    (folder / "config.json").write_text('{"eos_token_id": 2, "vocab_size": 320}')
    return folder


def takes(folder: Path, grammar: str, text: str, tags: Sequence[str] = ()) -> bool:
    """Whether the grammar takes the whole text as an answer. tags: those that are tokens of their own."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    ids = [max(raw["model"]["vocab"].values()) + 100 + number for number in range(len(tags))]
    raw["added_tokens"] += [
        {"id": i, "content": tag, "special": False, "normalized": False, "single_word": False, "lstrip": False,
         "rstrip": False}
        for i, tag in zip(ids, tags, strict=True)
    ]  # fmt: skip
    tokenizer = LLTokenizer(json.dumps(raw), eos_token=2)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("tags", [(), ("<tool_call>", "</tool_call>")])
@pytest.mark.parametrize(
    ("fields", "taken", "refused"),
    [
        ({}, ["", "text", "a < b", f"So:\n{FIND}", FIND, f"{FIND}\n{FIND_ALL}"], [WRONG, f"{FIND} more"]),
        ({"parallel_tool_calls": False}, [FIND, f"So: {FIND_ALL}"], [f"{FIND}\n{FIND_ALL}"]),
        ({"tool_choice": "required"}, [FIND, f"{FIND}\n{FIND_ALL}"], ["", "text", f"So:\n{FIND}"]),
        ({"tool_choice": {"type": "function", "function": {"name": "find"}}}, [FIND], ["", FIND_ALL]),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
                {"type": "function", "function": {"name": "find_all"}}]}}},
            ["text", FIND_ALL],
            [FIND],
        ),
    ],
)  # fmt: skip
def test_an_answer_is_text_or_calls_that_can_be_made(
    folder: Path, fields: dict[str, Any], taken: list[str], refused: list[str], tags: tuple[str, ...]
) -> None:
    grammar = plan(**fields).grammar(bool(tags))
    assert [text for text in taken if not takes(folder, grammar, text, tags)] == []
    assert [text for text in refused if takes(folder, grammar, text, tags)] == []


def test_an_answer_that_calls_nothing_has_the_form_that_was_asked_for(folder: Path) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes"]}}}
    body: Any = {"tools": TOOLS, "response_format": wanted, "messages": []}
    grammar = chat_params(body, plan_tools(body)).lark
    assert grammar is not None
    assert [takes(folder, grammar, text) for text in ('"yes"', FIND, "yes", f'"yes"{FIND}')] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("plain < text", "plain < text", []),
        ("", "", []),
        (f"Let me see.\n{FIND}\n{FIND_ALL}", "Let me see.", [("find", '{"at": "x"}'), ("find_all", "{}")]),
        *[(FIND[:-cut], "", [("find", '{"at": "x"}')]) for cut in range(1, 15)],  # cut short, the call is complete
        (FIND[:-15], "", [("find", '{"at": "x"')]),
        ("ends like a tag <tool_", "ends like a tag <tool_", []),
        (
            '<tool_call>\n{"name": "find", "arguments": {"at": "}\\n</tool_call>"}}\n</tool_call>',
            "",
            [("find", '{"at": "}\\n</tool_call>"}')],
        ),
    ],
)
def test_an_answer_is_taken_apart_however_it_comes(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    def named(made: list[Call]) -> list[tuple[str, str]]:
        return [(call.name, call.arguments) for call in made]

    whole = whole_answer(text)
    assert (whole[0], named(whole[1])) == (content, calls)
    rng = random.Random(3)
    for _ in range(50):
        parser, parts, at = ToolText(), [], 0
        while at < len(text):
            size = rng.randint(1, 9)
            parts += parser.push(text[at : at + size])
            at += size
        found = join_parts([*parts, *parser.flush()])
        assert (found[0], named(found[1])) == (content, calls)
        assert parser.num_calls == len(calls)


def test_a_call_is_told_before_its_arguments_are_complete() -> None:
    parser = ToolText()
    [start] = parser.push(FIND[: FIND.index('{"at')])
    assert isinstance(start, CallStart)
    assert start.name == "find"
    assert join_parts([start, *parser.push('{"at"')])[1][0].arguments == '{"at"'


def test_a_template_that_knows_no_tools_is_told_in_words() -> None:
    told = as_text(check_messages([{"role": "developer", "content": "Be brief."}, *HISTORY]), describe(plan()))
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n")
    assert '"find_all"' in told[0]["content"]
    assert told[2]["content"] == f"{FIND}\n{FIND_ALL}"
    assert told[3]["content"] == "<tool_response>\nhere\n</tool_response>\n<tool_response>\nthere\n</tool_response>"


def test_a_template_that_knows_tools_is_given_them(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(KNOWING)
    tokenizer, messages = Tokenizer.load(folder), check_messages(HISTORY)
    assert tokenizer.knows_tools
    ids: Any = chat_prompt(messages, plan(), tokenizer)
    want = '[find][find_all]<user>where<assistant><tool_call>{"at": "x"}<tool_call>{}<tool>here<tool>there'
    assert tokenizer.decode(ids) == want
    assert chat_prompt(messages[:1], None, tokenizer) == messages[:1]  # the service renders it, as ever


@pytest.mark.parametrize(("arguments", "limit"), [("{", "JSON object"), ("[]", "JSON object"), ('"a"', "JSON object")])
def test_a_call_of_before_must_be_one(arguments: str, limit: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    with pytest.raises(InvalidRequest, match=limit) as caught:
        check_messages([{"role": "assistant", "tool_calls": [call]}])
    assert caught.value.field == "messages[0].tool_calls[0].function.arguments"
