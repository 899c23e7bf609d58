"""A pipeline with counters."""

from __future__ import annotations

from typing import Any

from minedraft.core.counters import Counters
from minedraft.core.limits import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.engine.workers import Drafter, Verifier


class CountedPipeline(Pipeline):
    """A pipeline whose `counters` count everything since its start."""

    def __init__(self, limits: SchedulerLimits, verifier: Verifier, drafter: Drafter | None, **options: Any) -> None:
        self.counters = Counters()
        options["observers"] = [self.counters.observe, *options.get("observers", ())]
        super().__init__(limits, verifier, drafter, **options)
