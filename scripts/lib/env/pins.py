"""Reads `constraints.txt`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")


def pinned(names: Sequence[str], constraints: str) -> list[str]:
    """Return packages with the versions that the text of a constraints file names.

    Raises:
        LookupError: it has no version of one.
    """
    pins = dict(line.split("==") for line in constraints.splitlines() if "==" in line and not line.startswith("#"))
    missing = [name for name in names if name not in pins]
    if missing:
        raise LookupError(f"no version of {missing[0]} in {CONSTRAINTS.name}")
    return [f"{name}=={pins[name]}" for name in names]
