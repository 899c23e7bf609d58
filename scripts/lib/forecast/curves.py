"""Predicted speed-ups as curves, and the measured ones that belong on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minedraft.bench.measured import MeasuredRow, fit_rows, read_rows
from minedraft.cli.forecast.whole_run import simulate_rows
from minedraft.theory.costs import Cost, Costs
from minedraft.theory.fit import fit_cost
from minedraft.theory.modes import overlap_gain, same_batch_gain
from minedraft.theory.paper import PAPER_RATIO, ratio, ratio_range
from minedraft.theory.winning import least_context
from minedraft.types import Mode

Points = list[tuple[float, float]]
_MODES_OUTPUT_LEN = 48
"""Tokens of each answer in modes/smollm2.json, as its command asks for by default."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a panel, and its measured points. label: "" for none in the legend."""

    label: str
    line: Points
    points: Points


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what it shows over what."""

    name: str
    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    is_log: bool = False


def panels(results: Path) -> list[Panel]:
    """Return the pictures that the committed results allow. results: the folder scripts/results."""
    pairs = {name: read_rows(results / f"{name}.json") for name in ("smollm2", "qwen")}
    costs = {name: fit_rows(rows) for name, rows in pairs.items()}
    modes = json.loads((results / "modes" / "smollm2.json").read_text(encoding="utf-8"))
    forwards = json.loads((results / "forward.json").read_text(encoding="utf-8"))
    verify_kv_s, read_points = _context(forwards)
    long_costs = replace(costs["smollm2"], verify_kv_s=verify_kv_s, draft_kv_s=verify_kv_s)
    return [
        _over_draft_len(costs, pairs),
        _over_in_flight(costs, pairs, modes),
        _over_times(pairs),
        _verify_over_context(verify_kv_s, read_points),
        _gain_over_context(long_costs),
        _theorem(),
    ]


def _gain(rows: Sequence[MeasuredRow], num_in_flight: float, draft_len: int) -> float | None:
    """Return the measured speed of minedraft by that of sd with as many in flight, both within one table."""
    found = {
        row.rounds.mode: row.decode_tokens_per_s
        for row in rows
        if row.num_in_flight == num_in_flight and row.rounds.draft_len == draft_len
    }
    if Mode.SD not in found or Mode.MINEDRAFT not in found:
        return None
    return found[Mode.MINEDRAFT] / found[Mode.SD]


def _over_draft_len(costs: dict[str, Costs], pairs: dict[str, list[MeasuredRow]]) -> Panel:
    curves = []
    for name, num_in_flight in (("smollm2", 16), ("smollm2", 8), ("qwen", 8)):
        line = [(float(k), overlap_gain(costs[name], num_in_flight, k)) for k in range(1, 9)]
        found = [(float(k), _gain(pairs[name], num_in_flight, k)) for k in range(1, 9)]
        points = [(k, gain) for k, gain in found if gain is not None]
        curves.append(Curve(f"{name}, {num_in_flight} in flight", line, points))
    return Panel("draft_len", "over drafts per round", "k", "minedraft / sd, equal in flight", tuple(curves))


def _over_in_flight(costs: dict[str, Costs], pairs: dict[str, list[MeasuredRow]], modes: dict[str, Any]) -> Panel:
    curves = []
    for name, draft_len in (("smollm2", 2), ("qwen", 3)):
        line = [(float(n), overlap_gain(costs[name], n, draft_len)) for n in range(2, 33)]
        found = [(float(n), _gain(pairs[name], n, draft_len)) for n in (2, 4, 8, 16)]
        points = [(n, gain) for n, gain in found if gain is not None]
        curves.append(Curve(f"{name}, k = {draft_len}", line, points))
    whole = [
        (float(row["in_flight"]), row["tokens_per_s"]["minedraft k=2"] / row["tokens_per_s"]["sd k=2"])
        for row in modes["rows"]
        if "minedraft k=2" in row["tokens_per_s"]
    ]
    line = [(n, _simulated_gain(costs["smollm2"], pairs["smollm2"], int(n))) for n, _ in whole]
    curves.append(Curve("smollm2, k = 2, whole runs of another day, and simulated", line, whole))
    x, y = "requests in flight", "minedraft / sd, equal in flight"
    return Panel("in_flight", "over requests in flight", x, y, tuple(curves), True)


def _simulated_gain(costs: Costs, rows: Sequence[MeasuredRow], num_in_flight: int) -> float:
    """Return the same gain of whole runs, with prompts, ramp and tail, as simulated from the costs of these rows."""
    rates = {}
    like = {row.rounds.mode: row for row in rows}
    for mode in (Mode.SD, Mode.MINEDRAFT):
        rounds = replace(like[mode].rounds, num_requests=num_in_flight / mode.num_batches)
        row = replace(like[mode], rounds=rounds, num_requests=num_in_flight, output_len=_MODES_OUTPUT_LEN)
        rates[mode] = simulate_rows([row], costs)[0].run.tokens_per_s
    return rates[Mode.MINEDRAFT] / rates[Mode.SD]


def _over_times(pairs: dict[str, list[MeasuredRow]]) -> Panel:
    """Gains over the ratio of drafting to verifying, alone: with equal batches at most (t_d + t_v) / max(t_d, t_v)."""
    ratios = [2 ** (i / 8) for i in range(-24, 17)]
    flat = [Costs(Cost(x), Cost(1.0)) for x in ratios]
    bound = [(x, same_batch_gain(costs, 8, 1)) for x, costs in zip(ratios, flat, strict=True)]
    in_flight = [(x, overlap_gain(costs, 8, 1)) for x, costs in zip(ratios, flat, strict=True)]
    points: dict[str, Points] = {}
    for name, rows in pairs.items():
        for row in rows:
            rounds = row.rounds
            alone = [
                other
                for other in rows
                if other.rounds.mode is Mode.SD
                and (other.rounds.num_requests, other.rounds.draft_len) == (rounds.num_requests, rounds.draft_len)
            ]
            if rounds.mode is Mode.MINEDRAFT and alone:
                sd = alone[-1]
                x = sd.rounds.draft_s / sd.rounds.verify_s
                points.setdefault(name, []).append((x, sd.rounds.step_s / rounds.step_s))
    curves = [Curve("devices of their own, equal batches: the bound", bound, [])]
    curves += [Curve(f"{name}, equal batches, on cores that share memory", [], at) for name, at in points.items()]
    curves += [Curve("equal in flight, nothing grows with the batch", in_flight, [])]
    return Panel("times", "over drafting / verifying", "t_draft / t_verify", "minedraft / sd", tuple(curves), True)


def _context(forwards: Sequence[dict[str, Any]]) -> tuple[float, dict[int, Points]]:
    """Return the seconds that a cached token adds to a forward, and milliseconds over context, by rows of a request."""
    first = next(entry for entry in forwards if entry["device"] == "cpu:1" and "bf16" in entry["kernels"])
    points: dict[int, Points] = {}
    for found in first["forwards"]:
        if found["sequences"] == 8:
            points.setdefault(found["span_len"], []).append((float(found["context"]), found["ms"]))
    slopes = [fit_cost((x, ms / 1e3) for x, ms in of if x) for of in points.values()]
    return sum(cost.slope_s for cost in slopes) / len(slopes) / 8, points


def _verify_over_context(kv_s: float, points: dict[int, Points]) -> Panel:
    curves = []
    for span_len, found in sorted(points.items()):
        base_ms = sum(ms - 8e3 * kv_s * x for x, ms in found) / len(found)
        line = [(float(x), base_ms + 8e3 * kv_s * x) for x in range(0, 4097, 256)]
        curves.append(Curve(f"8 requests, {span_len} rows each", line, found))
    return Panel("verify_context", "a verify over the context", "cached tokens a request", "ms", tuple(curves))


def _gain_over_context(costs: Costs) -> Panel:
    lengths = [2**i for i in range(7, 16)]
    curves = []
    for n, k in ((8, 2), (16, 2)):
        line = [(float(x), overlap_gain(costs, n, k, x)) for x in lengths]
        label = f"{n} in flight, k = {k}; drafting hides the verify from {least_context(costs, n, k):,.0f} tokens on"
        curves.append(Curve(label, line, []))
    no_cache = replace(costs, draft_kv_s=0.0)
    line = [(float(x), overlap_gain(no_cache, 8, 2, x)) for x in lengths]
    curves.append(Curve("8 in flight, a drafter without a cache", line, []))
    title, x, y = "over the context (predicted)", "cached tokens a request", "minedraft / sd, equal in flight"
    return Panel("gain_context", title, x, y, tuple(curves), True)


def _theorem() -> Panel:
    values = [2 ** (i / 8) for i in range(-32, 41)]
    low, high = ratio_range()
    curves = (
        Curve("each method with its best drafting time", [(v, ratio(v)) for v in values], []),
        Curve("the paper's claim: from 1.68 on at least 1.59", [(1.68, PAPER_RATIO), (values[-1], PAPER_RATIO)], []),
        Curve(f"at least 1.59: from {low:.3f} to {high:.2f}", [], [(low, PAPER_RATIO), (high, PAPER_RATIO)]),
    )
    return Panel("theorem", "the paper's theorem, put right", "alpha V", "time in turns / overlapped", curves, True)


def errors(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Return measured and predicted tokens per second of every row of the committed comparisons.

    predicted, simulated: of steady rounds by the formulas, of the whole run by the simulator, with costs fitted to all
    rows. left_out, left_out_simulated: with costs fitted to the other tables only, whose loads are others.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("smollm2", "qwen"):
        rows = read_rows(results / f"{name}.json")
        costs = fit_rows(rows)
        for simulated in simulate_rows(rows, costs):
            row = simulated.row
            others = fit_rows([other for other in rows if other.num_requests != row.num_requests])
            found.setdefault(name, []).append(
                {
                    "label": row.label,
                    "draft_len": row.rounds.draft_len,
                    "measured": row.decode_tokens_per_s,
                    "predicted": row.predicted(costs).tokens_per_s,
                    "left_out": row.predicted(others).tokens_per_s,
                    "measured_whole": row.tokens_per_s,
                    "repeats_differ_by": row.spread,
                    "simulated": simulated.run.tokens_per_s,
                    "left_out_simulated": simulate_rows([row], others)[0].run.tokens_per_s,
                }
            )
    return found
