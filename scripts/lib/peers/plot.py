"""The picture of the comparison: decode rate over requests in flight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.lib.peers.cells import CellKind
from scripts.lib.peers.summary import Row

_COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#c53030", "#718096", "#b7791f", "#319795")
_FIGURE = "decode_tokens_per_s"


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write an SVG with one panel for each set of cores; bands reach from the lowest repeat to the highest."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    chosen = [row for row in rows if row.cell.kind is CellKind.FIXED and _FIGURE in row.figures]
    core_sets = list(dict.fromkeys(row.cores for row in chosen))
    colours = dict(zip(dict.fromkeys(row.peer for row in chosen), _COLOURS, strict=False))
    figure, axes = pyplot.subplots(1, max(len(core_sets), 1), figsize=(9, 3.6), squeeze=False)
    for axis, cores in zip(axes[0], core_sets, strict=False):
        for peer, colour in colours.items():
            own = sorted(
                (row for row in chosen if (row.cores, row.peer) == (cores, peer)),
                key=lambda row: row.cell.num_in_flight,
            )
            counts = [row.cell.num_in_flight for row in own]
            spreads = [row.figures[_FIGURE] for row in own]
            axis.plot(counts, [each.median for each in spreads], marker="o", markersize=3, color=colour, label=peer)
            lows, highs = [each.low for each in spreads], [each.high for each in spreads]
            axis.fill_between(counts, lows, highs, color=colour, alpha=0.2, linewidth=0)
        axis.set_xscale("log", base=2)
        counts = sorted({row.cell.num_in_flight for row in chosen})
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("requests in flight")
        axis.set_title(f"core {cores}" if cores.isdigit() else f"cores {cores}", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("tokens/s, all decoding")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9, x=0.99, ha="right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
