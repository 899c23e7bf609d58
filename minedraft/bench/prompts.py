"""The prompts of a benchmark, from the package or from a file."""

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
    """Return the prompts of a file, or the 24 that come with the package.

    Args:
        path: a file with a JSON list of {"prompt", "kind"?}, or with one such object per line.

    Raises:
        ConfigError: the file cannot be read or has no prompts.
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
