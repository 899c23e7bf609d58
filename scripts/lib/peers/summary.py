"""Medians over repeats, and how far the repeats lie apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median

from scripts.lib.peers.arrivals import Rates
from scripts.lib.peers.cells import Cell
from scripts.lib.peers.driving import Measurement


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repeats.

    Attributes:
        values: of each repeat, in their order.
    """

    median: float
    values: tuple[float, ...]

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def share(self) -> float:
        """(high - low) / median."""
        return (self.high - self.low) / max(self.median, 1e-9)


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of one engine on one set of cores, over its repeats.

    Attributes:
        figures: a field of `Rates` -> its spread; those that no repeat could tell are left out.
        same: smallest share over the repeats; see `Measurement`.
    """

    peer: str
    cores: str
    cell: Cell
    num_repeats: int
    figures: dict[str, Spread]
    same: float | None


def to_rows(measurements: Sequence[Measurement]) -> list[Row]:
    """Return one row for each engine, set of cores and cell, in the order in which they were first measured."""
    groups: dict[tuple[str, str, Cell], list[Measurement]] = defaultdict(list)
    for each in measurements:
        groups[each.peer, each.cores, each.cell].append(each)
    return [_to_row(group) for group in groups.values()]


def _to_row(group: Sequence[Measurement]) -> Row:
    figures: dict[str, Spread] = {}
    for name in (each.name for each in fields(Rates)):
        values = [value for each in group if (value := getattr(each.rates, name)) is not None]
        if values:
            figures[name] = Spread(float(median(values)), tuple(map(float, values)))
    shares = [each.same for each in group if each.same is not None]
    first = group[0]
    return Row(first.peer, first.cores, first.cell, len(group), figures, min(shares, default=None))
