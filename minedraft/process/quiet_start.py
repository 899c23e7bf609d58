"""The first moments of a program, in which it imports its modules and has no handler of its own for signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_EXIT_INTERRUPTED = 130  # as in `entry`, which is one of the modules to import


@contextmanager
def quiet_start() -> Iterator[None]:
    """Have Ctrl-C end the program with exit code 130 and no traceback while the block runs, and at once after it.

    The block imports the program, which takes most of its first second, and runs it: so the installed commands begin
    in the `__init__` of their packages, which import nothing that takes long. After it Python would print a traceback
    of whatever it clears away when Ctrl-C comes again: there the signal itself ends the process.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
