"""How long something takes on a machine that does nothing else, for promises in seconds."""

from __future__ import annotations

import re
import time
from pathlib import Path

_WAITED = Path("/proc/pressure/cpu")


class Elapsed:
    """Time from the making of this object on, without the time in which some process of the machine waited for a
    core: on a quiet machine all of it, on a crowded one next to nothing, where a promise in seconds means nothing."""

    def __init__(self) -> None:
        self._began_s, self._waited_s = time.monotonic(), _waited_s()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s - (_waited_s() - self._waited_s)


def _waited_s() -> float:
    """Return the pressure stall time of the processors (Linux 4.20's `some`), 0 where the kernel does not tell."""
    try:
        found = re.match(r"some .*total=(\d+)", _WAITED.read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1e6 if found else 0.0
