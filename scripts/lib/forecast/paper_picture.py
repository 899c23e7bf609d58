"""The picture of the paper's matrix: gains over k, pair by pair, and the published ones as bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.lib.forecast.gains import pick, throughput_gain

_COLOURS = ("#2b6cb0", "#4299e1", "#63b3ed", "#90cdf4")
_IN_FLIGHT, _PAPER = "#c53030", "#718096"


def draw_gains(content: dict[str, Any], path: Path) -> None:
    """Write an SVG with a panel for each pair."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "paper"  # the same file each time
    from matplotlib import pyplot

    pairs = content["pairs"]
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 5.4), sharex=True)
    for axis, pair in zip(axes.flat, pairs, strict=True):
        rows = pick(content["rows"], experiment="pairs", target=pair["target"], draft=pair["draft"])
        size, published = pair["size"], pair["published"]
        turns = {row["draft_len"]: row for row in pick(rows, mode="sd", size=size)}
        for extra, colour in enumerate(_COLOURS):
            own = pick(rows, mode="minedraft", extra=extra)
            label = "minedraft, simulated" if not extra else f"with TETRIS, e = {extra}"
            gains = [throughput_gain(row, turns[row["draft_len"]]) for row in own]
            axis.plot([row["draft_len"] for row in own], gains, marker="o", markersize=3, color=colour, label=label)
        alone = pick(rows, mode="minedraft", extra=0)
        double = {row["draft_len"]: row for row in pick(rows, mode="sd", size=2 * size)}
        gains = [throughput_gain(row, double[row["draft_len"]]) for row in alone]
        lens = [row["draft_len"] for row in alone]
        axis.plot(lens, gains, marker="s", markersize=3, color=_IN_FLIGHT, label="over sd, equal in flight")
        axis.axhspan(published["least"], published["most"], color=_PAPER, alpha=0.25, label="paper, best baseline")
        axis.axhline(published["over_sd"], color=_PAPER, linestyle="--", label="paper, largest over sd")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(f"{pair['target']}\n+ {pair['draft']}, m = {size}", loc="left", fontsize=8)
        axis.set_xticks(lens)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1][1].set_xlabel("drafts per round (k)")
    for axis in axes[:, 0]:
        axis.set_ylabel("gain over sd, %")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncol=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
