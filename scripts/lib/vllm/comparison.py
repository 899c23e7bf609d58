"""What a comparison inside vLLM measures, in which order, and what it has found so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minedraft.models.catalogue import Pair
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.vllm.course import Step, cell_step, start_step
from scripts.lib.vllm.findings import Times
from scripts.lib.vllm.memory import weight_bytes
from scripts.lib.vllm.servers import Sample
from scripts.lib.vllm.ways import ServerPlan, Way

PLUGIN_WAYS = (Way.SERIAL, Way.ALTERNATING)
SLOW = " with the slow drafter"
_MAX_PROMPT = 448  # tokens; those of the benchmark's chat prompts are fewer


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared.

    Attributes:
        counts: requests in flight. max_new_tokens: of each answer, exactly.
        repeats: how often each cell is measured in each way.
        paced: how long the slow drafter takes, as a share of the verify; 0: it is left out.
    """

    pair: Pair
    ways: Sequence[Way]
    counts: Sequence[int]
    draft_len: int
    dtype: str
    max_new_tokens: int
    repeats: int
    paced: float

    @property
    def title(self) -> str:
        return f"{self.pair.target.name} in vLLM, {self.dtype}, {self.draft_len} drafts"

    @property
    def can_be_paced(self) -> bool:
        """Whether there is something to compare with a slow drafter."""
        return self.paced > 0 and set(PLUGIN_WAYS) <= set(self.ways)

    def plan(self, folder: Path) -> ServerPlan:
        assert self.pair.draft is not None, "the pairs have draft models"
        max_len = _MAX_PROMPT + self.max_new_tokens
        most = max(self.counts)
        return ServerPlan(self.pair.target, self.pair.draft, self.dtype, self.draft_len, most, max_len, folder)

    def cells(self) -> list[Cell]:
        """Return a cell for each number in flight, and for the half of it, whose times the bound needs."""
        counts = sorted({*self.counts, *(count // 2 for count in self.counts)} - {0})
        return [Cell(CellKind.FIXED, count, None, self.max_new_tokens) for count in counts]

    def ways_of(self, cell: Cell) -> Sequence[Way]:
        """Return the ways that answer a cell: of a half that is not asked for, only what the bound needs."""
        return self.ways if cell.num_in_flight in self.counts else [way for way in self.ways if way is Way.SERIAL]

    @property
    def fullest(self) -> Cell:
        """The cell with most requests in flight."""
        return Cell(CellKind.FIXED, max(self.counts), None, self.max_new_tokens)

    def steps(self, ways: Sequence[Way]) -> list[Step]:
        """Return the steps of ways whose servers run at the same time."""
        weights = weight_bytes(self.pair.target, self.dtype)
        steps = [start_step(ways)]
        for repeat in range(self.repeats):
            asked = [(way, cell) for cell in self.cells() for way in self.ways_of(cell)]
            steps += [cell_step(way, cell, repeat, weights) for way, cell in asked if way in ways]
        if self.can_be_paced and set(PLUGIN_WAYS) <= set(ways):
            slow = [(repeat, way) for repeat in range(self.repeats) for way in PLUGIN_WAYS]
            steps += [cell_step(way, self.fullest, repeat, weights, SLOW) for repeat, way in slow]
        return steps


@dataclass(slots=True)
class Found:
    """What a comparison has measured.

    Attributes:
        failed: why a way has no figures, or not all.
        samples: with the drafter at its own pace. paced: with the slow one.
        paced_times: by requests, how long a draft of the slow one and a verify take.
        is_whole: whether the run came to its end.
    """

    failed: dict[Way, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    paced: list[Sample] = field(default_factory=list)
    paced_times: dict[int, Times] = field(default_factory=dict)
    is_whole: bool = False
