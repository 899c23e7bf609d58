"""The one JSON of a check: every figure is written when it is known, so that a step that is ended keeps its own.

Standard library only, so that it works where nothing else does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NAME = "check.json"


class Report:
    """A JSON file of sections. One process writes at a time: the steps run one after the other."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def read(self) -> dict[str, Any]:
        """Return all sections; empty if there is no file yet."""
        if not self._path.exists():
            return {}
        content: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        return content

    def put(self, section: str, key: str, value: object) -> None:
        """Set one entry of a section."""
        content = self.read()
        content.setdefault(section, {})[key] = value
        self._write(content)

    def drop(self, section: str) -> None:
        """Remove a section: its step begins anew."""
        content = self.read()
        content.pop(section, None)
        self._write(content)

    def _write(self, content: dict[str, Any]) -> None:
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, self._path)
