"""Result files that are short to read and to compare: a row a line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")


def write_rows(content: dict[str, Any], path: Path) -> None:
    """Write JSON in which what holds no other list or object is one line."""
    text = json.dumps(content, indent=1)
    text = _INNERMOST.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    path.write_text(text + "\n", encoding="utf-8")
