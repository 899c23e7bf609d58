"""Keeps the README's table of settings equal to the fields of `Settings`.

python -m scripts.lib.settings            writes the table between the two markers
python -m scripts.lib.settings --check    only checks that it is up to date
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path

from minedraft.settings.service import Settings

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def table() -> str:
    """Return the table: for each setting its name in the TOML file, its default and its description."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.own_first():
        default = field.default
        shown = default.value if isinstance(default, Enum) else default
        is_plain = field.default_factory is None and shown is not None
        rows.append(f"| `{name}` | {f'`{str(shown).lower()}`' if is_plain else ''} | {field.description} |")
    return "\n".join(rows)


def main() -> int:
    text = README.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"{README.name} has no {BEGIN} ... {END}", file=sys.stderr)
        return 1
    current = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        if current != text:
            print(
                "README.md: the table of settings is out of date; run python -m scripts.lib.settings", file=sys.stderr
            )
        return int(current != text)
    README.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
