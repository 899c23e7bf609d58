"""Line charts of result files. A picture holds a digest of what it shows, so that a check need not draw it again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#c53030", "#718096")
_FORM = "1"  # of the drawing: another one draws all pictures again


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one thing that is compared."""

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the charts that stand beside each other.

    Attributes:
        y_level: where a thin line says that nothing is gained; None for none.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    y_level: float | None = None


def is_of(path: Path, panels: Sequence[Panel]) -> bool:
    """Return whether the picture at `path` shows these panels."""
    return path.exists() and _digest(panels) in path.read_text(encoding="utf-8")


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Write an SVG with the panels; x is logarithmic, because loads are doubled."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "minedraft"}
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(4.5 * max(len(panels), 1.5), 3.4), squeeze=False)
    for axes, panel in zip(all_axes[0], panels, strict=True):
        for line, colour in zip(panel.lines, _COLOURS, strict=False):
            axes.plot(line.xs, line.ys, marker="o", markersize=3, color=colour, label=line.label)
        if panel.y_level is not None:
            axes.axhline(panel.y_level, color="#a0aec0", linewidth=0.8)
        axes.set_xscale("log", base=2)
        ticks = sorted({x for line in panel.lines for x in line.xs})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.set_title(panel.title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Description": _digest(panels), "Date": None})
    pyplot.close(figure)


def _digest(panels: Sequence[Panel]) -> str:
    return "figures " + hashlib.sha256(f"{_FORM} {panels!r}".encode()).hexdigest()[:20]
