"""Times of a forward pass, of the file of `scripts/bench/forward`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.lib.report.markdown import to_table
from scripts.lib.report.results import Results

_CONTEXT = 128
_ONE, _TWO = "cpu:1", "cpu:0-1"
# The name of a line, then device, kernels, number format and new tokens of each sequence.
_LINES = (
    ("1 new token each, one core, ms (times the floor)", _ONE, "native avx512_bf16", "bfloat16", 1),
    ("4 new tokens each, one core", _ONE, "native avx512_bf16", "bfloat16", 4),
    ("1 new token each, two cores", _TWO, "native avx512_bf16", "bfloat16", 1),
    ("1 new token each, one core, avx512 without bf16", _ONE, "native avx512", "bfloat16", 1),
    ("the same, avx2, float32", _ONE, "native avx2", "float32", 1),
)


def forward_table(results: Results, file: str) -> str:
    """Return the times over sequences, with their ratio to the floor where the floor is that of the same kernels."""
    content = results.load(file)
    lines: list[list[str]] = []
    counts: list[int] = []
    for name, device, kernels, dtype, span_len in _LINES:
        part = next(
            each for each in content if (each["device"], each["kernels"], each["dtype"]) == (device, kernels, dtype)
        )
        found = {
            each["sequences"]: each
            for each in part["forwards"]
            if each["context"] == _CONTEXT and each["span_len"] == span_len
        }
        counts = sorted(found)
        show = _with_floor if kernels == "native avx512_bf16" else _alone
        lines.append([name, *(show(found[count]) for count in counts)])
    return to_table(["sequences", *map(str, counts)], lines)


def _with_floor(figures: Mapping[str, Any]) -> str:
    return f"{figures['ms']:.1f} ({figures['ratio']:.2f})"


def _alone(figures: Mapping[str, Any]) -> str:
    return f"{figures['ms']:.1f}"
