"""The plot of an evaluation: rounds, acceptance by position and the training curve."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from scripts.drafter.evaluating.measure import LOOKUP, MODES


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Draws a result of `stages.evaluation` as a PNG."""
    import matplotlib as mpl
    from PIL import Image

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2))
    greedy = result["acceptance"]["greedy"]
    for kind in (kind for kind in greedy if kind != "all"):
        values = greedy[kind]["trained"]["tokens_per_round"]
        line = axes[0].plot(range(1, len(values) + 1), values, marker="o", label=kind)
        copied = greedy[kind][LOOKUP]["tokens_per_round"]
        axes[0].plot(range(1, len(copied) + 1), copied, linestyle=":", color=line[0].get_color())
    axes[0].set(title="Tokens a round, greedy (dotted: prompt lookup)", xlabel="k", ylabel="tokens a round")
    axes[0].legend()
    for mode in MODES:
        values = result["acceptance"][mode]["all"]["trained"]["accepted_at"]
        axes[1].plot(range(1, len(values) + 1), values, marker="o", label=mode)
    axes[1].set(title="Drafts accepted by position", xlabel="position", ylabel="share of rounds", ylim=(0, 1))
    axes[1].legend()
    curve = result["curve"]
    for key in sorted({key for point in curve for key in point if "_k" in key}):
        points = [(point["tokens"] / 1000, point[key]) for point in curve if key in point]
        axes[2].plot(*zip(*points, strict=True), marker=".", label=key.replace("_k", ", k = "))
    axes[2].set(title="Validation: tokens a round", xlabel="trained tokens (thousands)")
    axes[2].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    pyplot.close(figure)
    # Every clone carries the picture, and it has few colours.
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
