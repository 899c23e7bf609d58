"""Gains of overlapping from simulated cells, defined as the paper defines its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def pick(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def throughput_gain(row: Row, base: Row) -> float:
    """Return by how many percent a row gives more tokens per second than another one."""
    return float(100 * (row["tokens_per_s"] / base["tokens_per_s"] - 1))


def makespan_reduction(row: Row, base: Row) -> float:
    """Return by how many percent the whole run is shorter, per request."""
    return float(100 * (1 - row["makespan_per_request_ms"] / base["makespan_per_request_ms"]))


def gains_of_pair(rows: Sequence[Row], size: int) -> dict[str, float | None]:
    """Return the gains of a pair with m = `size`, in percent.

    over_sd: the largest at any k, TETRIS variants included, over sd with m at the same k, as the paper's headline.
    alone: the same without TETRIS. where_sd_peaks: at the k where sd is best, TETRIS included ("over the best
    baseline"). equal_in_flight: of the best k and variant over the best k of sd with 2 m. over_ar: the same over ar
    with 2 m. makespan: the largest reduction of makespan per request.
    """
    overlapped = pick(rows, mode="minedraft", size=size)
    turns = {row["draft_len"]: row for row in pick(rows, mode="sd", size=size, extra=0)}
    peak = max(turns.values(), key=lambda row: row["tokens_per_s"])
    best = max(row["tokens_per_s"] for row in overlapped)
    result: dict[str, float | None] = {
        "over_sd": max(throughput_gain(row, turns[row["draft_len"]]) for row in overlapped),
        "alone": max(throughput_gain(row, turns[row["draft_len"]]) for row in pick(overlapped, extra=0)),
        "where_sd_peaks": max(throughput_gain(row, peak) for row in pick(overlapped, draft_len=peak["draft_len"])),
        "makespan": max(makespan_reduction(row, turns[row["draft_len"]]) for row in overlapped),
    }
    for name, mode in (("equal_in_flight", "sd"), ("over_ar", "ar")):
        rivals = [row["tokens_per_s"] for row in pick(rows, mode=mode, size=2 * size)]
        result[name] = 100 * (best / max(rivals) - 1) if rivals else None
    return result
