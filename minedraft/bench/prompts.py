"""The prompts of a benchmark: those that come with the package, or a file's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from minedraft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """A user message and the kind of task it is."""

    kind: str
    text: str


def load_prompts(path: Path | None) -> list[BenchPrompt]:
    """The 24 prompts that come with the package, or a file: a JSON list of {"prompt", "kind"?} or the
    same one object a line.

    Raises:
        ConfigError: no file, or no prompts in it.
    """
    try:
        text = (path or files("minedraft") / "assets" / "prompts.json").read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
        prompts = [BenchPrompt(str(row.get("kind", "-")), str(row["prompt"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("prompts", str(path), f'must be a readable JSON list of {{"prompt": ...}}: {error}') from None
    if not prompts:
        raise ConfigError("prompts", str(path), "must have at least one prompt")
    return prompts
