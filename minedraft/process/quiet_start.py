"""The first moments of a program, in which it imports its modules and has no handler of its own for signals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_EXIT_INTERRUPTED = 130  # as in `entry`, which is one of the modules to import


@contextmanager
def quiet_start() -> Iterator[None]:
    """Have Ctrl-C end the program with exit code 130 and without a traceback while the block runs.

    The block imports the program, which takes most of its first second, and runs it: so the installed commands begin
    in the `__init__` of their packages, which import nothing that takes long.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
