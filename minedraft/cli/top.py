"""`minedraft top`: a live view of a running service in the terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console, RenderableType
from rich.live import Live

from minedraft.cli.flags.connection import Connection, connection_flags
from minedraft.cli.flags.numbers import NumberRange
from minedraft.cli.top_view import Throughput, render_frame, render_lost
from minedraft.client import Client
from minedraft.errors import MineDraftError
from minedraft.output import ServiceStatus

_TIMEOUT_S = 2.0

_EPILOG = """
\b
Examples:
  minedraft top
  minedraft top --interval-s 0.2
  minedraft top --once | head -3
q or Ctrl-C leaves. It goes on while the service is restarted.
"""


@click.command(epilog=_EPILOG)
@connection_flags
@click.option(
    "--interval-s",
    type=NumberRange(0.1, 3600),
    default=1.0,
    metavar="SECONDS",
    help="Seconds between frames. [default: 1]",
)
@click.option("--once", is_flag=True, help="Print one frame and leave, as is done where the output is no terminal.")
def top(connection: Connection, interval_s: float, once: bool) -> None:
    """Watch batches, workers, throughput, mode and faults of a running service."""
    console = Console()
    with Client(connection.server, timeout_s=_TIMEOUT_S, **connection.access) as client:
        frames = Frames(client.status, client.address.target)
        if once or not console.is_terminal:
            console.print(frames.first(console.width))
            return
        with _pressed_keys() as wait_for_key, Live(console=console, screen=True, auto_refresh=False) as live:
            try:
                while True:
                    live.update(frames.next(console.width), refresh=True)
                    if wait_for_key(interval_s) == "q":
                        return
            except KeyboardInterrupt:
                return


class Frames:
    """The frames of a view.

    Args:
        ask: returns the present status, or raises MineDraftError.
    """

    def __init__(self, ask: Callable[[], ServiceStatus], address: str) -> None:
        self._ask = ask
        self._address = address
        self._history = Throughput()
        self._last: RenderableType | None = None

    def first(self, width: int) -> RenderableType:
        """Return a frame; raise what the service, or its absence, raises."""
        now = self._ask()
        self._history.add(now)
        self._last = render_frame(now, self._address, self._history, width)
        return self._last

    def next(self, width: int) -> RenderableType:
        """Return a frame, also if the service does not answer."""
        try:
            return self.first(width)
        except MineDraftError as error:
            return render_lost(self._address, str(error), self._last)


@contextmanager
def _pressed_keys() -> Iterator[Callable[[float], str]]:
    """Read single keys from the terminal while the block runs. Yield a function that waits for one, at most the given
    seconds, and returns it or an empty text."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def wait(seconds: float) -> str:
        is_ready, _, _ = select.select([terminal], [], [], seconds)
        return os.read(terminal, 1).decode(errors="replace") if is_ready else ""

    try:
        tty.setcbreak(terminal)
        yield wait
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""
