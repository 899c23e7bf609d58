"""Reads a dataset file: JSON, one JSON object a line, or either of them compressed by gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from minedraft.bench.datasets.layouts import LAYOUTS, Layout, Record, WrongRecord, recognise
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.errors import ConfigError

ANY_LAYOUT = "auto"
MAX_DATASET_BYTES = 1 << 30  # unpacked; ShareGPT has 670 MB
_FIELD = "dataset"
_GZIP = b"\x1f\x8b"


def read_dataset(path: Path, layout: str = ANY_LAYOUT) -> list[BenchPrompt]:
    """Return the prompts of a file, in its order.

    Args:
        layout: a name of `LAYOUTS`, or "auto": that of the first record.

    Raises:
        ConfigError: the file cannot be read, a record is not of the layout, or there is no prompt. It names the file,
            the line (of a JSON list: the entry) and what was expected there.
    """
    records = _records(path, _read(path))
    if not records:
        raise ConfigError(_FIELD, str(path), "must have at least one record")
    chosen = recognise([record for _, record in records]) if layout == ANY_LAYOUT else LAYOUTS[layout]
    if chosen is None:
        known = "; ".join(f"{known.name}: {known.expects}" for known in LAYOUTS.values())
        raise ConfigError(_FIELD, f"{path}:{records[0][0]}", f"must have the fields of a known layout ({known})")
    prompts = [prompt for place, record in records if (prompt := _prompt(path, place, record, chosen)) is not None]
    if not prompts:
        raise ConfigError(_FIELD, str(path), f"has no prompt ({chosen.name})")
    return prompts


def _prompt(path: Path, place: str, record: Record, layout: Layout) -> BenchPrompt | None:
    try:
        return layout.prompt_of(record)
    except WrongRecord as error:
        raise ConfigError(_FIELD, f"{path}:{place}", f"must have {error} ({layout.name})") from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == _GZIP
        with gzip.open(path) if is_packed else path.open("rb") as file:
            content = file.read(MAX_DATASET_BYTES + 1)
        if len(content) > MAX_DATASET_BYTES:
            raise ConfigError(_FIELD, str(path), f"must have at most {MAX_DATASET_BYTES} bytes")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(_FIELD, str(path), f"must be UTF-8 text: byte {error.start} is not") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(_FIELD, str(path), f"cannot be read: {error}") from None


def _records(path: Path, text: str) -> list[tuple[str, Record]]:
    """Return each record with its place: a line's number, or "entry N" in a JSON list."""
    if text.lstrip().startswith("["):
        values: list[Any] = _parse(path, text, 0)
        places = [f"entry {number}" for number in range(1, len(values) + 1)]
    else:
        # Not splitlines: the text of a prompt may have other line ends within a record.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        values = [_parse(path, line, number) for number, line in lines]
        places = [str(number) for number, _ in lines]
    for place, value in zip(places, values, strict=True):
        if not isinstance(value, dict):
            raise ConfigError(_FIELD, f"{path}:{place}", "must be a JSON object")
    return list(zip(places, values, strict=True))


def _parse(path: Path, text: str, line: int) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        at = line or getattr(error, "lineno", 1)
        why = getattr(error, "msg", type(error).__name__)
        expects = "must be a JSON object on each line, or one JSON list of objects"
        raise ConfigError(_FIELD, f"{path}:{at}", f"{expects}: {why}") from None
