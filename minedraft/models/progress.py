"""Progress of a long step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes of a step; total 0: only the step's name is known."""

    step: str
    done: int = 0
    total: int = 0
    model: str = ""


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Discard progress."""
