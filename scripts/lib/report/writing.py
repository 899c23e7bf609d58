"""Writes the generated parts and the numbers of a page, and says where page and result files disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from scripts.lib.report.numbers import Number, StaleFact, find_numbers, write_like
from scripts.lib.report.page import Block, PageError, Paragraph, Source, split
from scripts.lib.report.results import Results, SourceError

Part = Callable[..., str]
"""A generated part: of the results and the arguments on the page it makes Markdown."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A disagreement.

    Attributes:
        line: on the page, from 1.
        can_be_written: whether writing the page ends it.
    """

    line: int
    message: str
    can_be_written: bool = True


def write_page(text: str, results: Results, parts: Mapping[str, Part]) -> tuple[str, list[Problem]]:
    """Return the page as the result files have it, and what is wrong with the given one.

    Args:
        parts: by name; see `page`.
    """
    lines = text.split("\n")
    written = list(lines)
    problems: list[Problem] = []
    blocks: list[tuple[Block, list[str]]] = []
    try:
        for part in split(lines):
            if isinstance(part, Block):
                content = _make(part, results, parts, problems)
                if content is not None:
                    blocks.append((part, content))
            else:
                _write_numbers(part, results, written, problems)
    except PageError as error:
        return text, [Problem(error.line, str(error), can_be_written=False)]
    for block, content in reversed(blocks):
        written[block.start : block.start + len(block.lines)] = content
    return "\n".join(written), sorted(problems, key=lambda problem: problem.line)


def _make(block: Block, results: Results, parts: Mapping[str, Part], problems: list[Problem]) -> list[str] | None:
    """Return the lines of a generated part, or None if it cannot be made."""
    if block.name not in parts:
        known = ", ".join(sorted(parts))
        problems.append(Problem(block.start, f"no part is named {block.name}; there are {known}", False))
        return None
    results.pop_used()
    try:
        content = parts[block.name](results, *block.arguments).split("\n")
    except (SourceError, TypeError, LookupError) as error:
        said = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
        problems.append(Problem(block.start, f"{block.name} cannot be made: {said}", False))
        return None
    if content != list(block.lines):
        problems.append(_first_difference(block, content, ", ".join(results.pop_used()) or "the code"))
    return content


def _first_difference(block: Block, content: list[str], files: str) -> Problem:
    for index, (old, new) in enumerate(zip(block.lines, content, strict=False)):
        if old != new:
            pairs = zip(_numbers(old), _numbers(new), strict=False)
            was, now = next((pair for pair in pairs if pair[0] != pair[1]), (old, new))
            return Problem(block.start + index + 1, f"{was} must be {now} by {files}")
    return Problem(block.start, f"{len(block.lines)} lines of {block.name} must be {len(content)} by {files}")


def _numbers(text: str) -> list[str]:
    return [number.literal for number in find_numbers(text)]


def _write_numbers(paragraph: Paragraph, results: Results, written: list[str], problems: list[Problem]) -> None:
    """Write the numbers of a paragraph into it and into its sources, and say which have none."""
    text = "\n".join(paragraph.lines)
    try:
        numbers = find_numbers(text, paragraph.facts)
    except StaleFact as error:
        problems.append(Problem((paragraph.note or paragraph.start) + 1, f"{error}", False))
        return
    for number, source in reversed(_match(numbers, paragraph.sources)):  # from the end: what is before keeps its place
        if number is None or source is None:
            problems.append(_unmatched(paragraph, number, source))
            continue
        line = _line_of(number, paragraph)
        try:
            value = write_like(source.literal, results.value(source.file, source.expression))
        except (SourceError, TypeError) as error:
            problems.append(Problem(line, f"{number.literal}: {error}", can_be_written=False))
            continue
        wrong = next((literal for literal in (number.literal, source.literal) if literal != value), None)
        if wrong is not None:
            said = f"{wrong} must be {value} by {source.expression} of {results.path(source.file)}"
            problems.append(Problem(line, said))
        text = f"{text[: number.start]}{value}{text[number.end :]}"
        written[source.line] = written[source.line].replace(f"{source.literal}:", f"{value}:", 1)
    written[paragraph.start : paragraph.start + len(paragraph.lines)] = text.split("\n")


def _unmatched(paragraph: Paragraph, number: Number | None, source: Source | None) -> Problem:
    if source is not None:
        said = f"{source.literal} has a source, but is not in the text"
        return Problem(source.line + 1, said, can_be_written=False)
    assert number is not None, "one of both is there"
    return Problem(_line_of(number, paragraph), f"{number.literal} has no source", can_be_written=False)


def _line_of(number: Number, paragraph: Paragraph) -> int:
    return paragraph.start + "\n".join(paragraph.lines).count("\n", 0, number.start) + 1


def _match(numbers: list[Number], sources: list[Source]) -> list[tuple[Number | None, Source | None]]:
    """Return the numbers of a text beside their sources. If there are as many of one as of the other, each has the one
    at its place; else what is alike goes together, and the rest stands alone."""
    if len(numbers) == len(sources):
        return list(zip(numbers, sources, strict=True))
    said, known = [number.literal for number in numbers], [source.literal for source in sources]
    matched: list[tuple[Number | None, Source | None]] = []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, said, known, autojunk=False).get_opcodes():
        if kind == "equal":
            matched += zip(numbers[i:i_end], sources[j:j_end], strict=True)
        else:
            matched += [(number, None) for number in numbers[i:i_end]]
            matched += [(None, source) for source in sources[j:j_end]]
    return matched
