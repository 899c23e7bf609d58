"""scripts/forecast/theory: what the formulas predict, as pictures, with the measured points on the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from minedraft.cli.console import run
from scripts.lib.forecast.curves import Panel, errors, panels
from scripts.lib.forecast.files import write_rows

_FIGURES = (
    ("predicted", "measured", "steady rounds by the formulas"),
    ("left_out", "measured", "with costs from other loads"),
    ("simulated", "measured_whole", "whole runs by the simulator"),
    ("left_out_simulated", "measured_whole", "with costs from other loads"),
)
_COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("scripts/results"),
    show_default=True,
    help="Folder of the measured results.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("scripts/results/forecast"),
    show_default=True,
    help="Folder of theory.json and theory.svg.",
)
def main(results: Path, out: Path) -> None:
    """Draw the speed-up of overlapping over drafts, batch, context and t_draft / t_verify, by the formulas.

    The costs are fitted to smollm2.json and qwen.json in the folder of results; the measured points are theirs, and
    those of modes/smollm2.json, forward.json. Says how far the predictions are from what was measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    shown, found = panels(results), errors(results)
    content = {"panels": [asdict(panel) for panel in shown], "rows": found}
    write_rows(content, out / "theory.json")
    draw_panels(shown, out / "theory.svg")
    console = Console()
    for name, rows in found.items():
        for figure, measured, what in _FIGURES:
            off = [abs(row[figure] / row[measured] - 1) for row in rows]
            within = sum(each <= 0.1 for each in off)
            console.print(f"{name}, {what}: {within} of {len(off)} within 10 %, at most {max(off):.0%} off")
    console.print(f"{out / 'theory.svg'}")


def draw_panels(shown: Sequence[Panel], path: Path) -> None:
    """Write an SVG with lines for what is predicted, and dots for what was measured."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "theory"  # the same file each time
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7.2))
    for axis, panel in zip(axes.flat, shown, strict=True):
        for curve, colour in zip(panel.curves, _COLOURS, strict=False):
            label = curve.label
            if curve.line:
                axis.plot(*zip(*curve.line, strict=True), color=colour, label=label)
                label = ""
            if curve.points:
                axis.plot(*zip(*curve.points, strict=True), "o", color=colour, markersize=5, label=label)
        if panel.is_log:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if panel.y != "ms":
            axis.axhline(1, color="black", linewidth=0.6)
        axis.set_title(panel.title, loc="left", fontsize=10)
        axis.set_xlabel(panel.x)
        axis.set_ylabel(panel.y, fontsize=8)
        axis.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17))
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, "scripts/forecast/theory")
