"""The steps of a comparison in their order, told before each with the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from scripts.lib.peers.cells import Cell, expected_s
from scripts.lib.peers.clock import Clock, OnStep
from scripts.lib.vllm.ways import Way

_START_S = 30.0  # of servers that start together


@dataclass(frozen=True, slots=True)
class Step:
    """Servers that start (`way` None), or a cell that one way answers."""

    label: str
    seconds: float
    way: Way | None = None

    @property
    def expected(self) -> tuple[str, float]:
        return "start" if self.way is None else self.way.value, self.seconds


def start_step(ways: Sequence[Way]) -> Step:
    """Return the step that starts the servers of these ways."""
    return Step(f"starting vLLM: {', '.join([way.value for way in ways])}", _START_S)


def cell_step(way: Way, cell: Cell, repeat: int, weight_bytes: float, note: str = "") -> Step:
    """Return the step of a cell.

    Args:
        weight_bytes: of the target. note: what is special about it.
    """
    label = f"{way.value}{note}, {cell.num_in_flight} in flight, repeat {repeat + 1}"
    return Step(label, expected_s(cell, 1, weight_bytes), way)


class Course:
    """Tells each step before it runs.

    Args:
        steps: all steps, in their order.
    """

    def __init__(self, steps: list[Step], on_step: OnStep) -> None:
        self._ahead = steps
        self._on_step = on_step
        self._clock = Clock()

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """Run the block as a step of the course."""
        self._on_step(step.label, self._clock.left_s([each.expected for each in self._ahead]))
        began_s = time.monotonic()
        yield
        self._clock.record(step.expected, time.monotonic() - began_s)
        if step in self._ahead:
            self._ahead.remove(step)

    def drop(self, way: Way) -> None:
        """Leave out the steps of a way that has failed."""
        self._ahead = [step for step in self._ahead if step.way is not way]
