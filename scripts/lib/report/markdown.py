"""Markdown that a result becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def to_table(header: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[int] = (0,)) -> str:
    """Return a table with numbers on the right.

    Args:
        text: columns of words, which are on the left.

    Raises:
        ValueError: a row is longer or shorter than the header.
    """
    rules = ["---" if index in text else "--:" for index in range(len(header))]
    lines = [header, rules]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells, the header has {len(header)}: {row}")
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bold(text: str) -> str:
    return f"**{text}**"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"
