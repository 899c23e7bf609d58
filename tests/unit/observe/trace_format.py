"""What the Trace Event Format demands of the records that we write, and that no device does two things at once."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

_KEYS = {
    "M": {"name", "ph", "pid", "args"},
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "i": {"name", "cat", "ph", "ts", "pid", "tid", "s", "args"},
    "C": {"name", "ph", "ts", "pid", "args"},
}
_MORE_KEYS = {"M": {"tid"}, "X": {"cname"}}
_ROUNDING_US = 0.002


def check_trace(records: list[dict[str, Any]]) -> None:
    """Assert that a viewer can read the records, and that the bars of one lane do not overlap."""
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        kind = record["ph"]
        assert _KEYS[kind] <= record.keys() <= _KEYS[kind] | _MORE_KEYS.get(kind, set()), record
        assert isinstance(record["name"], str), record
        assert isinstance(record["args"], dict), record
        assert all(isinstance(record[key], int) for key in ("pid", "tid") if key in record), record
        assert all(isinstance(record[key], int | float) for key in ("ts", "dur") if key in record), record
        if kind == "X":
            assert record["dur"] >= 0, record
            lanes[record["pid"], record["tid"]].append((record["ts"], record["ts"] + record["dur"]))
        elif kind == "i":
            assert record["s"] in ("g", "p", "t"), record
        elif kind == "C":
            assert record["args"], record
            assert all(isinstance(value, int | float) for value in record["args"].values()), record
    for bars in lanes.values():
        bars.sort()
        for (_, end_us), (start_us, _) in pairwise(bars):
            assert start_us >= end_us - _ROUNDING_US, "one device, one command at a time"
