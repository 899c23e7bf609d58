"""The first moments of a program, in which it imports its modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_EXIT_INTERRUPTED = 130  # as in `entry`, which is one of the modules to load


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Have Ctrl-C end the program with exit code 130 and without a traceback while the block runs.

    The imports of a program take most of its first second, and no handler of its own is in place yet.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
