"""Whether the scheduler gets on, for the watchdog: an observer of all events, and looks at the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from minedraft.core import events
from minedraft.engine.pipeline import Pipeline
from minedraft.types import Batch


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A look at the scheduler.

    Attributes:
        is_idle: it has no request, or waits for a worker: the workers are watched themselves.
        count: of all that has happened, a lane that found nothing to do included.
    """

    is_idle: bool
    count: int


class SchedulerProgress:
    """Counts events, and knows which rounds are with the workers."""

    def __init__(self) -> None:
        self._count = 0
        self._open: set[tuple[Batch, int]] = set()
        self._pipeline: Pipeline | None = None

    def watch(self, pipeline: Pipeline) -> None:
        """Look at this pipeline from now on."""
        self._pipeline = pipeline

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        self._count += 1
        match event:
            case events.RoundPlanned():
                self._open.add((event.batch, event.number))
            case events.RoundCommitted() | events.RoundAbandoned():
                self._open.discard((event.batch, event.number))

    def look(self) -> StepProgress:
        """Return how far the scheduler is. Lanes that have no round although there are requests are asked to look for
        one, so that the count moves if they can, and stands still if they hang."""
        pipeline = self._pipeline
        is_idle = pipeline is None or pipeline.is_idle or not pipeline.has_verifier or bool(self._open)
        if pipeline is not None and not is_idle:
            pipeline.look_again()
        return StepProgress(is_idle, self._count)
