"""Times of a forward pass, of the file of `scripts/bench/forward`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.lib.report.markdown import to_table
from scripts.lib.report.results import Results

_CONTEXT = 128
_ONE, _TWO = "cpu:1", "cpu:0-1"
_SMALL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a table: its name, and which run it is of. span_len: new tokens of each sequence."""

    name: str
    device: str
    kernels: str
    dtype: str = "bfloat16"
    span_len: int = 1
    model: str = _SMALL

    def is_of(self, run: Mapping[str, Any]) -> bool:
        wanted = self.device, self.kernels, self.dtype, self.model
        return (run["device"], run["kernels"], run["dtype"], run["model"]) == wanted

    def show(self, figures: Mapping[str, Any]) -> str:
        """Return the time, with its ratio to the floor where that is of the same instructions."""
        has_floor = self.kernels.endswith("bf16")
        return f"{figures['ms']:.1f} ({figures['ratio']:.2f})" if has_floor else f"{figures['ms']:.1f}"


_DOT, _TILES = "native avx512_bf16", "native amx_bf16"
_TABLES = {
    "forward.json": (
        _Line("1 new token each, one core, ms (times the floor)", _ONE, _DOT),
        _Line("4 new tokens each, one core", _ONE, _DOT, span_len=4),
        _Line("1 new token each, two cores", _TWO, _DOT),
        _Line("1 new token each, one core, avx512 without bf16", _ONE, "native avx512"),
        _Line("the same, avx2, float32", _ONE, "native avx2", "float32"),
    ),
    "forward_zen4.json": (
        _Line("1 new token each, one core, ms (times the floor)", _ONE, _DOT),
        _Line("4 new tokens each, one core", _ONE, _DOT, span_len=4),
        _Line("1 new token each, two cores", _TWO, _DOT),
        _Line("4 new tokens each, two cores", _TWO, _DOT, span_len=4),
    ),
    "forward_amx.json": (
        _Line("1 new token each, one core, ms (times the floor)", _ONE, _TILES),
        _Line("4 new tokens each, one core", _ONE, _TILES, span_len=4),
    ),
}


def forward_table(results: Results, file: str) -> str:
    """Return the times over sequences, with their ratio to the floor where the floor is that of the same kernels."""
    content = results.load(file)
    lines: list[list[str]] = []
    counts: list[int] = []
    for line in _TABLES[file]:
        run = next(filter(line.is_of, content))
        found = {
            each["sequences"]: each
            for each in run["forwards"]
            if each["context"] == _CONTEXT and each["span_len"] == line.span_len
        }
        counts = sorted(found)
        lines.append([line.name, *(line.show(found[count]) for count in counts)])
    return to_table(["sequences", *map(str, counts)], lines)
