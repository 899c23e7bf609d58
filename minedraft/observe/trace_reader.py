"""Reads a trace that the service has written, also one that was cut off in the middle of a record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minedraft.errors import ConfigError
from minedraft.observe.timeline import Bar
from minedraft.observe.trace_events import BATCH_CATEGORIES, LANES, NOTES_LANE
from minedraft.types import Role

_ROLES = {lane: role for role, lane in LANES.items()}
_BATCHES = {category: batch for batch, category in BATCH_CATEGORIES.items()}


@dataclass(frozen=True, slots=True)
class Note:
    """A moment of a trace: a change of the mode, a fault. at_s: seconds from the start of the trace."""

    at_s: float
    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace holds: the commands and the notes, each in order of time; seconds from the start of the trace."""

    title: str
    bars: tuple[Bar, ...]
    notes: tuple[Note, ...]


def read_trace(path: Path) -> Trace:
    """Return a trace.

    Raises:
        ConfigError: the file cannot be read, or is no trace of ours.
    """
    records = read_records(path)
    try:
        title = next((r["args"]["name"] for r in records if r["name"] == "process_name"), "")
        bars = [_bar(r) for r in records if r["ph"] == "X" and r.get("cat") in _BATCHES]
        notes = [_note(r) for r in records if r["ph"] == "i" and r.get("tid") == NOTES_LANE]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise no_trace(path) from None
    return Trace(
        title, tuple(sorted(bars, key=lambda bar: bar.start_s)), tuple(sorted(notes, key=lambda note: note.at_s))
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a trace as they were written.

    Raises:
        ConfigError: the file cannot be read, or is no list of records.
    """
    try:
        return _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("FILE", str(path), f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise no_trace(path) from None


def no_trace(path: Path) -> ConfigError:
    """Return the error for a file that is something else."""
    return ConfigError("FILE", str(path), "is not a trace that minedraft-launch --trace has written")


def _load(text: str) -> list[dict[str, Any]]:
    try:
        records = json.loads(text)
    except ValueError:  # cut off: the last record is not whole
        records = json.loads(f"{text[: text.rindex(',' + chr(10))]}]")
    if not isinstance(records, list):
        raise ValueError("not an array")
    return records


def _bar(record: dict[str, Any]) -> Bar:
    start_s = record["ts"] / 1e6
    role: Role = _ROLES[record["tid"]]
    return Bar(
        role,
        _BATCHES[record["cat"]],
        record["args"]["round"],
        start_s,
        start_s + record["dur"] / 1e6,
        record["name"].startswith("prefill"),
    )


def _note(record: dict[str, Any]) -> Note:
    return Note(record["ts"] / 1e6, record["cat"], record["name"])
