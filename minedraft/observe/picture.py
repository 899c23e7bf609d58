"""A picture of a timeline: two lanes, the batches in two colours, idle time as bare ground. Shapes, then SVG or PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from minedraft.errors import ConfigError
from minedraft.observe.timeline import Bar, Shares, shares, within
from minedraft.observe.trace_reader import Note, Trace
from minedraft.types import Batch, Role

WIDTH, HEIGHT = 1100.0, 250.0
_LEFT, _RIGHT = 80.0, 1085.0
_LANE_TOP = {Role.VERIFIER: 62.0, Role.DRAFTER: 118.0}
_LANE_HEIGHT = 46.0
_AXIS_Y = 182.0
_COLOURS = {Batch.A: "#2b6cb0", Batch.B: "#dd6b20"}
_GROUND, _INK, _FAULT = "#e2e8f0", "#1a202c", "#c53030"
_LETTER_WIDTH = 16.0
_LEAST_WIDTH = 0.4
_MAX_BARS = 20_000
_MAX_NOTES = 12


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; lengths in pixels from the upper left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text on its baseline. anchor: start, middle or end."""

    x: float
    y: float
    text: str
    size: float = 12.0
    anchor: str = "start"
    colour: str = _INK


Shape = Box | Words


def draw_trace(trace: Trace, begin_s: float, end_s: float) -> list[Shape]:
    """Return the shapes of a window of a trace; later ones lie above earlier ones.

    Raises:
        ConfigError: the window holds no command, or too many to tell apart.
    """
    bars = within(trace.bars, begin_s, end_s)
    if not bars:
        raise ConfigError("from", f"{begin_s:g} to {end_s:g} s", "no command of a worker is in this part of the trace")
    if len(bars) > _MAX_BARS:
        limit = f"{len(bars)} commands are in this part of the trace, a picture shows at most {_MAX_BARS}"
        raise ConfigError("from", f"{begin_s:g} to {end_s:g} s", limit)
    scale = (_RIGHT - _LEFT) / (end_s - begin_s)
    shapes: list[Shape] = [Box(0, 0, WIDTH, HEIGHT, "#ffffff")]
    shapes += [Words(_LEFT, 22, trace.title or "MineDraft", size=14)]
    shapes += _legend()
    for role, top in _LANE_TOP.items():
        shapes.append(Words(_LEFT - 8, top + _LANE_HEIGHT / 2 + 4, role.value, anchor="end"))
        shapes.append(Box(_LEFT, top, _RIGHT - _LEFT, _LANE_HEIGHT, _GROUND))
    for bar in bars:
        shapes += _bar(bar, begin_s, end_s, scale)
    shapes += _notes([note for note in trace.notes if begin_s <= note.at_s <= end_s], begin_s, scale)
    shapes += _axis(begin_s, end_s, scale)
    shapes += [
        Words(_LEFT, _AXIS_Y + 42 + 16 * line, text)
        for line, text in enumerate(caption(shares(bars, begin_s, end_s)).split("\n"))
    ]
    return shapes


def caption(found: Shares) -> str:
    """Return two lines: what share of the time each worker was busy, with which batch, and both together."""

    def describe(role: Role) -> str:
        parts = ", ".join(f"{batch.name} {share:.0%}" for batch, share in found.busy[role].items() if share)
        idle = found.idle(role)
        return f"{role.value}: busy {1 - idle:.1%}{f' ({parts})' if parts else ''}, idle {idle:.1%}"

    return f"{describe(Role.VERIFIER)}; {describe(Role.DRAFTER)}\nboth at the same time: {found.both:.1%}"


def to_svg(shapes: Sequence[Shape]) -> str:
    """Return the shapes as an SVG document."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" '
        f'height="{HEIGHT:g}" font-family="Helvetica, Arial, sans-serif">'
    ]
    for shape in shapes:
        if isinstance(shape, Box):
            place = f'x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.width:.2f}" height="{shape.height:.2f}"'
            lines.append(f'<rect {place} fill="{shape.colour}"/>')
        else:
            place = f'x="{shape.x:.2f}" y="{shape.y:.2f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
            lines.append(f'<text {place} fill="{shape.colour}">{escape(shape.text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def write_png(shapes: Sequence[Shape], path: Path) -> None:
    """Write the shapes as a PNG.

    Raises:
        ConfigError: matplotlib, of the extra `plot`, is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "o", str(path), "a .png needs matplotlib: pip install 'minedraft[plot]', or write a .svg"
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    figure = pyplot.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    alignments = {"start": "left", "middle": "center", "end": "right"}
    for order, shape in enumerate(shapes):
        if isinstance(shape, Box):
            box = Rectangle((shape.x, shape.y), shape.width, shape.height, color=shape.colour, linewidth=0)
            axes.add_patch(box).set_zorder(order)
        else:
            text = axes.text(shape.x, shape.y, shape.text, zorder=order, parse_math=False)
            text.set(fontsize=shape.size * 0.72, color=shape.colour, ha=alignments[shape.anchor])
    figure.savefig(path)
    pyplot.close(figure)


def _bar(bar: Bar, begin_s: float, end_s: float, scale: float) -> Iterator[Shape]:
    start_s, stop_s = max(bar.start_s, begin_s), min(bar.end_s, end_s)
    x, width = _LEFT + (start_s - begin_s) * scale, max((stop_s - start_s) * scale, _LEAST_WIDTH)
    top = _LANE_TOP[bar.role]
    # A prefill is lower, so that it can be told from a draft.
    inset = _LANE_HEIGHT / 4 if bar.is_prefill else 0.0
    gap = 0.5 if width > 3 else 0.0  # neighbours can be told apart
    yield Box(x, top + inset, width - gap, _LANE_HEIGHT - 2 * inset, _COLOURS[bar.batch])
    if width >= _LETTER_WIDTH:
        yield Words(x + width / 2, top + _LANE_HEIGHT / 2 + 4, bar.batch.name, anchor="middle", colour="#ffffff")


def _legend() -> Iterator[Shape]:
    x = _LEFT
    for colour, text, width in (
        (_COLOURS[Batch.A], "batch A", 80),
        (_COLOURS[Batch.B], "batch B", 80),
        (_GROUND, "idle (a lower bar: prompts)", 190),
    ):
        yield Box(x, 34, 14, 14, colour)
        yield Words(x + 20, 46, text)
        x += width


def _notes(notes: Sequence[Note], begin_s: float, scale: float) -> Iterator[Shape]:
    for note in notes[:_MAX_NOTES]:
        x = _LEFT + (note.at_s - begin_s) * scale
        colour = _FAULT if note.category == "fault" else _INK
        yield Box(x, 54, 1, _AXIS_Y - 56, colour)
        yield Words(x, 53, note.text, size=9, colour=colour, anchor="end" if x > WIDTH * 0.8 else "start")


def _axis(begin_s: float, end_s: float, scale: float) -> Iterator[Shape]:
    yield Box(_LEFT, _AXIS_Y - 10, _RIGHT - _LEFT, 1, _INK)
    step_s = _round_step((end_s - begin_s) / 8)
    num_ticks = int((end_s - begin_s) / step_s) + 1
    for tick in range(num_ticks):
        x = _LEFT + tick * step_s * scale
        yield Box(x, _AXIS_Y - 10, 1, 5, _INK)
        yield Words(x, _AXIS_Y + 8, f"{tick * step_s * 1e3:.6g}", size=10, anchor="middle")
    yield Words(_RIGHT, _AXIS_Y + 22, f"milliseconds from second {begin_s:.3f} of the trace", size=10, anchor="end")


def _round_step(step: float) -> float:
    """Return the next of 1, 2, 5, 10, 20 ... of a power of ten that is not below `step`."""
    power = 10.0**-9
    while power * 10 < step:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))
