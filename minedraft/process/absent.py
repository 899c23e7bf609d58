"""Which doors of the service do not run: the launcher writes it down for the scheduler, which shows it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_NAME = "absent"


def tell_absent(folder: Path, names: Sequence[str]) -> None:
    """Write the names of the processes that should run and do not. folder: of the service."""
    with suppress(OSError):  # a full disk: what runs goes on, and the launcher's own lines say it
        new = folder / f".{_NAME}.new"
        new.write_text(" ".join(names))
        new.replace(folder / _NAME)


def read_absent(folder: Path) -> str:
    """Return the names that were written last, with spaces between; none if nothing was."""
    try:
        return (folder / _NAME).read_text()
    except OSError:
        return ""
