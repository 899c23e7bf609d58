"""Which doors of a service do not run: the launcher writes it down in the run folder, and the scheduler shows it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_NAME = "absent"


def tell_absent(folder: Path, names: Sequence[str]) -> None:
    """Write the names of the doors that should run and do not. folder: the run folder."""
    with suppress(OSError):  # a full disk: what runs goes on, and the launcher's own lines say it
        new = folder / f".{_NAME}.new"
        new.write_text(" ".join(names))
        new.replace(folder / _NAME)


def read_absent(folder: Path) -> str:
    """Return the names that were written last, with spaces between; "" if nothing was. folder: the run folder."""
    try:
        return (folder / _NAME).read_text()
    except OSError:
        return ""
