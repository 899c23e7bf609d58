"""Numbers in prose: which of them need a source, and how a value is written in the form of another one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Of the form 12, 1,898, 0.33, 5.23.0.
_NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z_]-)(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)*)(?![\d])([A-Za-z_]*)")
_UNITS = frozenset({"", "x", "s", "ms", "us", "ns", "min", "h", "KB", "MB", "GB", "K", "k"})
_NOT_PROSE = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL),  # code
    re.compile(r"\]\([^)]*\)"),  # where a link leads
    re.compile(r"https?://\S+"),
    re.compile(r"^\s*\d+\. ", re.MULTILINE),  # of a list
    re.compile(r"\b[kmn] = \d+(?:(?: and | or | to )\d+)*"),  # the setting of a measurement
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text.

    Attributes:
        start: offset of its first character.
    """

    start: int
    literal: str

    @property
    def end(self) -> int:
        return self.start + len(self.literal)


class StaleFact(ValueError):
    """A text does not have what is said to be no measurement in it."""


def find_numbers(text: str, facts: Sequence[str] = ()) -> list[Number]:
    """Return the numbers of a Markdown text that a measurement must stand behind, in their order.

    Code, links, names such as H100 or SmolLM2-135M, and `k = 2` are none.

    Args:
        facts: phrases with numbers that are no measurements.

    Raises:
        StaleFact: a phrase is not in the text.
    """
    for pattern in _NOT_PROSE:
        text = pattern.sub(_blank, text)
    for fact in facts:
        words = r"\s+".join(map(re.escape, fact.split()))
        text, count = re.subn(rf"(?<![\w.,])(?<!\d-){words}(?![\w]|[.,]\d)", _blank, text)
        if not count:
            raise StaleFact(f"'{fact}' is not in the text")
    matches = (match for match in _NUMBER.finditer(text) if match[1] in _UNITS)
    return [Number(match.start(), match[0].removesuffix(match[1]) if match[1] else match[0]) for match in matches]


def write_like(literal: str, value: object) -> str:
    """Return a value with as many decimals as the literal, and with commas if it has some; of a version as many parts.

    Raises:
        TypeError: the value is neither a number nor a version.
    """
    if isinstance(value, str):
        return ".".join(value.split(".")[: literal.count(".") + 1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    decimals = len(literal.partition(".")[2])
    comma = "," if "," in literal else ""
    return f"{value:{comma}.{decimals}f}"


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
