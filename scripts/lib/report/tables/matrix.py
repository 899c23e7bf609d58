"""The small version of the paper's matrix, of the file of `scripts/bench/matrix`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scripts.lib.matrix.store import median_of
from scripts.lib.report.markdown import bold, times, to_table
from scripts.lib.report.results import Results

_BASE = {"draft_len": 2, "size": 4, "samples": 1, "temperature": 0.0}
_SAMPLED = 0.8  # where n is varied: greedy answers to one prompt are all the same
_LETTERS = {"draft_len": "k", "size": "m", "samples": "n", "temperature": "T"}
_HEADER = (
    "`ar`, one device", "`ar`, both", "`sd` m", "`sd` 2m", "`minedraft`", "of `sd` m", "of `sd` 2m", "of `ar`, both",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Point:
    """Tokens/s of the modes at one setting; None where a mode was not measured."""

    plain_one: float | None
    plain_both: float | None
    turns: float | None
    turns_double: float | None
    overlapped: float | None

    def figures(self) -> Iterator[float | None]:
        """Yield the rates, then those of overlapping over what it is compared with."""
        yield from (self.plain_one, self.plain_both, self.turns, self.turns_double, self.overlapped)
        for base in (self.turns, self.turns_double, self.plain_both):
            yield self.overlapped / base if self.overlapped is not None and base else None


def matrix_axis_table(results: Results, file: str, axis: str) -> str:
    """Return what one axis changes around the base, for each pair: medians over the kinds of prompts.

    Args:
        axis: draft_len, size, samples or temperature.
    """
    content = results.load(file)
    base = _BASE | ({"temperature": _SAMPLED} if axis == "samples" else {})
    done = content["done"]
    lines = []
    for pair in dict.fromkeys(setting["pair"] for setting in done):
        own = [each for each in done if each["pair"] == pair and _agrees(each, base, axis)]
        for value in sorted({each[axis] for each in own}):
            points = [_point(content, each) for each in own if each[axis] == value]
            lines.append([f"{pair}, {_LETTERS[axis]} = {value:g}", *_shown(points)])
    return to_table(["medians over the kinds", *_HEADER], lines)


def matrix_kinds_table(results: Results, file: str) -> str:
    """Return the base setting of each pair by kind of prompt."""
    content = results.load(file)
    chosen = [each for each in content["done"] if _agrees(each, _BASE, "")]
    lines = [[f"{each['pair']}, {each['kind']}", *_shown([_point(content, each)])] for each in chosen]
    return to_table(["pair, prompts", *_HEADER], sorted(lines))


def _agrees(setting: Mapping[str, Any], base: Mapping[str, float], but: str) -> bool:
    return all(setting[name] == value for name, value in base.items() if name != but)


def _point(content: Mapping[str, Any], setting: Mapping[str, Any]) -> _Point:
    names = ("pair", "kind", "size", "samples", "temperature")
    table = next(each for each in content["tables"] if all(each[name] == setting[name] for name in names))
    size = setting["size"]

    def rate(is_wanted: Callable[[Mapping[str, Any]], bool]) -> float | None:
        found = [row for row in table["rows"] if is_wanted(row["config"])]
        return median_of(content, found[0], "tokens_per_s") if found else None

    def drafted(mode: str, num: int) -> float | None:
        return rate(lambda config: _key(config) == (mode, num, setting["draft_len"]))

    return _Point(
        rate(lambda config: config["mode"] == "ar" and config.get("keeps_cores", False)),
        rate(lambda config: config["mode"] == "ar" and not config.get("keeps_cores", False)),
        drafted("sd", size),
        drafted("sd", 2 * size),
        drafted("minedraft", size),
    )


def _key(config: Mapping[str, Any]) -> tuple[str, int, int]:
    return config["mode"], config["max_batch_size"], config["draft_len"]


def _shown(points: Sequence[_Point]) -> list[str]:
    """Return the median of each figure over the points; ratios stand in the last three columns."""
    cells = []
    for index, values in enumerate(zip(*(point.figures() for point in points), strict=True)):
        known = [value for value in values if value is not None]
        if not known:
            cells.append("")
        elif index < 5:
            cells.append(f"{median(known):.0f}" if median(known) >= 100 else f"{median(known):.1f}")
        else:
            cells.append(bold(times(median(known))) if median(known) >= 1 else times(median(known)))
    return cells
