"""What was predicted and simulated, of the files of `scripts/forecast`."""

from __future__ import annotations

from statistics import median

from scripts.lib.report.markdown import percent, to_table
from scripts.lib.report.results import Results

_PREDICTED = (  # what is predicted, of what it is a prediction, and how
    ("predicted", "measured", "steady rounds, formulas"),
    ("left_out", "measured", "steady rounds, formulas, costs from other loads"),
    ("simulated", "measured_whole", "whole runs, simulator"),
    ("left_out_simulated", "measured_whole", "whole runs, simulator, costs from other loads"),
)


def theory_table(results: Results, file: str) -> str:
    """Return how far the formulas and the simulator are from each set of measured rows."""
    lines = []
    for name, rows in results.load(file)["rows"].items():
        for figure, measured, what in _PREDICTED:
            off = sorted(abs(row[figure] / row[measured] - 1) for row in rows)
            within = sum(each <= 0.1 for each in off)
            lines.append([f"{name}, {what}", str(len(off)), str(within), percent(median(off)), percent(off[-1])])
    return to_table(["measured rows, and what predicts them", "number", "within 10 %", "median off", "most off"], lines)


def paper_table(results: Results, file: str) -> str:
    """Return the simulated gains of each pair of the paper beside the published ones, in percent."""
    header = (
        "pair", "m", "over `sd`, same k", "published", "where `sd` peaks", "published", "makespan", "published",
        "equal in flight", "over `ar`", "this product, equal in flight",
    )  # fmt: skip
    lines = []
    for pair in results.load(file)["pairs"]:
        simulated, published = pair["simulated"]["paper"], pair["published"]
        lines.append(
            [
                f"{pair['target']}, {pair['draft']}",
                str(pair["size"]),
                _gain(simulated["over_sd"]),
                _gain(published["over_sd"]),
                _gain(simulated["where_sd_peaks"]),
                f"{published['least']:+g} to {published['most']:+g} %",
                _gain(-simulated["makespan"]),
                _gain(-published["makespan"]),
                _gain(simulated["equal_in_flight"]),
                _gain(simulated["over_ar"]),
                _gain(pair["simulated"]["product"]["equal_in_flight"]),
            ]
        )
    return to_table(header, lines)


def differences_list(results: Results, file: str) -> str:
    """Return why each pair's simulated gain differs from the published one."""
    pairs = results.load(file)["pairs"]
    return "\n".join(f"- **{pair['target']}, {pair['draft']}**: {pair['explained']}" for pair in pairs)


def capacity_table(results: Results, file: str, scenario: str) -> str:
    """Return the outcomes of a scenario under its title; times in seconds."""
    found = results.load(file)[scenario]
    header = (
        "setting", "mode", "tokens/s", "queue, median", "99th", "first token, median", "99th", "ms a token",
        "KV taken", "refused", "lasted",
    )  # fmt: skip
    table = to_table(
        header,
        [
            [
                row["setting"],
                row["mode"],
                f"{row['tokens_per_s']:.0f}",
                *(f"{row[name][at]:.2f}" for name in ("queue_s", "first_token_s") for at in ("p50", "p99")),
                f"{row['per_token_s']['p50'] * 1e3:.1f}",
                percent(row["peak_kv_share"]),
                str(row["num_refused"]),
                f"{row['seconds']:.1f}",
            ]
            for row in found["rows"]
        ],
        text=(0, 1),
    )
    return f"{found['title']}:\n\n{table}"


def _gain(value: float | None) -> str:
    return "" if value is None else f"{value:+.0f} %"
