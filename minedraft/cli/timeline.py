"""`minedraft timeline`: a picture of what both workers did, from a trace."""

from __future__ import annotations

from pathlib import Path

import click

from minedraft.cli.console import print_json, say
from minedraft.errors import ConfigError
from minedraft.observe.picture import caption, draw_trace, to_svg, write_png
from minedraft.observe.timeline import Shares, middle, shares, within
from minedraft.observe.trace_reader import Trace, read_trace
from minedraft.settings.flags import UserPath
from minedraft.settings.writable import check_writable_file

_SHOWN_VERIFIES = 12

_EPILOG = """
\b
Examples:
  minedraft-launch --mode minedraft --trace run.json
  minedraft timeline run.json                          the middle of the run, as run.svg
  minedraft timeline run.json -o run.png --from 2.5 --to 3
\b
https://ui.perfetto.dev opens the trace itself.
"""


@click.command(epilog=_EPILOG)
@click.argument("file", type=UserPath(), metavar="FILE")
@click.option(
    "-o", "--out", type=UserPath(), default=None, metavar="PICTURE", help="A .svg or .png. [default: FILE.svg]"
)
@click.option(
    "--from", "begin_s", type=float, default=None, metavar="SECONDS", help="Begin here, from the trace's start."
)
@click.option("--to", "end_s", type=float, default=None, metavar="SECONDS", help="End here.")
@click.option("--json", "as_json", is_flag=True, help="Print the shares as one JSON object.")
def timeline(file: Path, out: Path | None, begin_s: float | None, end_s: float | None, as_json: bool) -> None:
    """Draw a trace: a lane for each worker, the batches in two colours, idle time in grey.

    Without --from and --to it draws a dozen rounds from the middle, if possible of a time in which both workers worked.
    """
    out = out or file.with_suffix(".svg")
    if out.suffix not in (".svg", ".png"):
        raise ConfigError("o", str(out), "must end in .svg or .png")
    check_writable_file("o", out)
    trace = read_trace(file)
    if not trace.bars:
        raise ConfigError("FILE", str(file), "holds no command of a worker")
    first_s, last_s = trace.bars[0].start_s, max(bar.end_s for bar in trace.bars)
    window = _window(trace, begin_s, end_s, last_s)
    shapes = draw_trace(trace, *window)
    if out.suffix == ".png":
        write_png(shapes, out)
    else:
        out.write_text(to_svg(shapes), encoding="utf-8")
    shown = shares(within(trace.bars, *window), *window)
    if as_json:
        everything = shares(trace.bars, first_s, last_s)
        print_json({"from_s": window[0], "to_s": window[1], "shown": _plain(shown), "whole": _plain(everything)})
    else:
        click.echo(f"{window[0]:.3f} to {window[1]:.3f} s of {last_s:.3f} s")
        click.echo(caption(shown))
    say(f"written to {out}")


def _window(trace: Trace, begin_s: float | None, end_s: float | None, last_s: float) -> tuple[float, float]:
    if begin_s is None and end_s is None:
        return middle(trace.bars, _SHOWN_VERIFIES)
    begin_s = trace.bars[0].start_s if begin_s is None else begin_s
    end_s = last_s if end_s is None else end_s
    if not begin_s < end_s:
        raise ConfigError("to", end_s, f"must be after --from, {begin_s:g}; the trace ends at {last_s:.3f} s")
    return begin_s, end_s


def _plain(found: Shares) -> dict[str, object]:
    workers = {
        role.value: {"idle": found.idle(role), **{batch.name: share for batch, share in busy.items()}}
        for role, busy in found.busy.items()
    }
    return {**workers, "both": found.both}
