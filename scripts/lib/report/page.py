"""The parts of a Markdown page: paragraphs with the sources of their numbers, and parts that are generated whole.

Both are told apart by comments, which a reader of the page does not see. A generated part stands between

    <!-- begin: NAME ARGUMENT... -->
    <!-- end: NAME ARGUMENT... -->

and the sources of the numbers of a paragraph, a list, a table or a `text` fence stand behind it, in the order of the
numbers; what is no measurement is named too:

    Of its speed 0.66 stays at 8 in flight.
    <!-- numbers
    studies/two_hosts.json
      0.66: pairs.timed.tokens_per_s["sd 2m"].kept
    not measured: 8 in flight; another phrase
    -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_BEGIN = re.compile(r"<!-- begin: (.+?) -->$")
_FENCE = re.compile(r"(```+|~~~+)\s*(\w*)")
_NUMBERS = "<!-- numbers"
_FACTS = "not measured:"
_SOURCE = re.compile(r"\s+(\S+): (.+)$")


class PageError(ValueError):
    """A page has a part that cannot be read.

    Attributes:
        line: its number, from 1.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Source:
    """Where a number is from.

    Attributes:
        line: index of its line on the page.
        file: as in `Results.load`.
    """

    line: int
    literal: str
    file: str
    expression: str


@dataclass(slots=True)
class Paragraph:
    """Lines without an empty one between them.

    Attributes:
        start: index of the first line on the page.
        facts: phrases whose numbers are no measurements.
        note: index of the first line of the sources; None if there are none.
    """

    start: int
    lines: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    note: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A part that is generated.

    Attributes:
        start: index of its first line, which is behind the marker.
    """

    start: int
    lines: tuple[str, ...]
    name: str
    arguments: tuple[str, ...]


def split(lines: Sequence[str]) -> Iterator[Paragraph | Block]:
    """Yield the parts of a page in their order.

    Raises:
        PageError: a part has no end, or the sources of numbers are not of their form.
    """
    last: Paragraph | None = None
    at = 0
    while at < len(lines):
        line = lines[at]
        if begin := _BEGIN.match(line):
            end = _find(lines, at, f"<!-- end: {begin[1]} -->")
            name, *arguments = begin[1].split()
            if last is not None:
                yield last
            last = None
            yield Block(at + 1, tuple(lines[at + 1 : end]), name, tuple(arguments))
        elif line.startswith(_NUMBERS):
            end = _find(lines, at, "-->")
            if last is None or last.note is not None:
                raise PageError(at + 1, "the sources of numbers stand behind no text")
            last.note = at
            _read_note(last, lines, at + 1, end)
        elif line.startswith("<!--"):
            end = next(index for index in range(at, len(lines)) if "-->" in lines[index])
        elif fence := _FENCE.match(line):
            end = _find(lines, at, fence[1])
            if last is not None:
                yield last
            # What a program printed is checked like prose; commands and programs are not.
            last = Paragraph(at + 1, list(lines[at + 1 : end])) if fence[2] == "text" else None
        elif line.strip():
            end = at
            if last is None or last.note is not None or at != last.start + len(last.lines):
                if last is not None:
                    yield last
                last = Paragraph(at)
            last.lines.append(line)
        else:
            end = at
        at = end + 1
    if last is not None:
        yield last


def _find(lines: Sequence[str], at: int, end: str) -> int:
    """Return the index of the next line that is `end`."""
    found = next((index for index in range(at + 1, len(lines)) if lines[index].rstrip() == end), None)
    if found is None:
        raise PageError(at + 1, f"{lines[at]} has no {end}")
    return found


def _read_note(paragraph: Paragraph, lines: Sequence[str], start: int, end: int) -> None:
    file, facts = "", ""
    for index in range(start, end):
        line = lines[index]
        if facts or line.startswith(_FACTS):
            facts += f" {line.removeprefix(_FACTS)}"
        elif line.endswith(".json") and " " not in line:
            file = line
        elif (source := _SOURCE.match(line)) and file:
            paragraph.sources.append(Source(index, source[1], file, source[2]))
        else:
            raise PageError(index + 1, f"'{line}' is neither a file, NUMBER: EXPRESSION nor '{_FACTS} ...'")
    paragraph.facts += [" ".join(fact.split()) for fact in facts.split(";") if fact.strip()]
