"""The text of an answer that may call tools, and what of it is content, a call's name, or a call's arguments.

The form is that of Hermes' and Qwen's templates, and the grammar of `tools.py` makes every answer have it: text, then
blocks `<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>`. Between the tags there is no other line break,
so the end of the arguments can be told while they come.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
BEFORE_NAME: Final = '\n{"name": "'
AFTER_NAME: Final = '", "arguments": '
AFTER_ARGUMENTS: Final = f"}}\n{CLOSE}"


@dataclass(frozen=True, slots=True)
class Content:
    """Text before the calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its arguments follow."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON text of the last call's arguments."""

    text: str


Part = Content | CallStart | Arguments


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call; of an answer that was cut short, with the arguments so far."""

    id: str
    name: str
    arguments: str


class ToolText:
    """Takes an answer apart while it comes. What may be the beginning of a tag is held back, and so is the white space
    before the first call, which belongs to neither."""

    def __init__(self) -> None:
        self._rest = ""
        self._mark = OPEN  # what ends the present part: OPEN in content, and so on in the order of a block
        self._arguments = ""  # of the last call, so far
        self.num_calls = 0

    def push(self, text: str) -> list[Part]:
        """Return the parts that are certain after more text."""
        self._rest += text
        return list(self._parts())

    def flush(self) -> list[Part]:
        """Return what is held back: the text has ended."""
        rest, self._rest = self._rest, ""
        if self._mark == OPEN and not self.num_calls and rest:
            return [Content(rest)]
        if self._mark != AFTER_ARGUMENTS or not rest or _is_json(self._arguments):  # what is left is of the block
            return []
        return [Arguments(rest)]

    def _parts(self) -> Iterator[Part]:
        while (end := self._rest.find(self._mark)) >= 0:
            before, self._rest = self._rest[:end], self._rest[end + len(self._mark) :]
            if self._mark == OPEN:
                if not self.num_calls and (content := before.rstrip()):
                    yield Content(content)
                self._mark = BEFORE_NAME
            elif self._mark == BEFORE_NAME:
                self._mark = AFTER_NAME
            elif self._mark == AFTER_NAME:
                self.num_calls += 1
                self._arguments = ""
                yield CallStart(f"call_{uuid.uuid4().hex}", before)
                self._mark = AFTER_ARGUMENTS
            else:
                if before:
                    yield Arguments(before)
                self._mark = OPEN
        if self._mark == OPEN and not self.num_calls:
            if certain := self._take(len(_without_tail(self._rest, OPEN).rstrip())):
                yield Content(certain)
        elif self._mark == AFTER_ARGUMENTS and (certain := self._take(len(_without_tail(self._rest, self._mark)))):
            self._arguments += certain
            yield Arguments(certain)

    def _take(self, num_chars: int) -> str:
        taken, self._rest = self._rest[:num_chars], self._rest[num_chars:]
        return taken


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _without_tail(text: str, mark: str) -> str:
    """Return the text without the longest end of it that may be the beginning of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return text[:-length]
    return text


def whole_answer(text: str) -> tuple[str, list[Call]]:
    """Return the content and the calls of a whole answer."""
    parser = ToolText()
    return join_parts([*parser.push(text), *parser.flush()])


def join_parts(parts: Sequence[Part]) -> tuple[str, list[Call]]:
    """Return the content and the calls that parts add up to."""
    content, calls = "", list[Call]()
    for part in parts:
        if isinstance(part, Content):
            content += part.text
        elif isinstance(part, CallStart):
            calls.append(Call(part.id, part.name, ""))
        else:
            calls[-1] = Call(calls[-1].id, calls[-1].name, calls[-1].arguments + part.text)
    return content, calls
