"""What simulated rows say to a person who plans a purchase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from minedraft.sim.simulation import SimulatedRun
from minedraft.types import Mode


@dataclass(frozen=True, slots=True)
class SimulatedRow:
    """A mode with so many requests per batch and drafts. num_gpus: that it uses; None: unknown."""

    mode: Mode
    max_batch_size: int
    draft_len: int
    run: SimulatedRun
    num_gpus: int | None = None

    @property
    def num_in_flight(self) -> int:
        return self.max_batch_size * self.mode.num_batches

    @property
    def label(self) -> str:
        return f"{self.mode.value} {'+'.join([str(self.max_batch_size)] * self.mode.num_batches)}"

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens per second of each GPU that it uses."""
        return self.run.tokens_per_s / (self.num_gpus or 1)

    def to_json(self) -> dict[str, Any]:
        facts = {"mode": self.mode.value, "max_batch_size": self.max_batch_size, "draft_len": self.draft_len}
        return facts | {"num_gpus": self.num_gpus} | asdict(self.run)


def rows_table(rows: Sequence[SimulatedRow]) -> Table:
    """Return the comparison."""
    has_gpus = rows[0].num_gpus is not None
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = ["mode", "k", "tok/s", *(["a GPU"] if has_gpus else []), "draft", "verify", "step", "TTFT", "TPOT", "busy"]
    for name in names:
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for row in rows:
        run, rounds = row.run, row.run.rounds
        has_drafts = row.mode.has_drafts
        table.add_row(
            row.label,
            str(row.draft_len) if has_drafts else "-",
            f"{run.tokens_per_s:.0f}",
            *([f"{row.tokens_per_gpu:.0f}"] if has_gpus else []),
            f"{rounds.draft_ms:.1f}" if has_drafts else "-",
            f"{rounds.verify_ms:.1f}",
            f"{rounds.step_ms:.1f}",
            f"{run.first_token.p50 * 1e3:.0f}",
            f"{run.per_token.p50 * 1e3:.1f}",
            f"{rounds.verifier_busy:.0%}",
        )
    table.caption = "Times in ms, TTFT and TPOT of the median request; busy: the verifier's share."
    return table


def advice(rows: Sequence[SimulatedRow], draft: str | None) -> Iterator[str]:
    """Yield what is best at each load, in all and for each GPU, and what went wrong. draft: its name."""
    for num_in_flight, group in groupby(rows, key=lambda row: row.num_in_flight):
        found = list(group)
        if len(found) < 2:
            continue
        best = max(found, key=lambda row: row.run.tokens_per_s)
        line = f"{num_in_flight} in flight: {_way(best)} gives the most, {best.run.tokens_per_s:.0f} tok/s"
        thrifty = max(found, key=lambda row: row.tokens_per_gpu)
        if thrifty.num_gpus is not None and thrifty is not best:
            line += f"; {_way(thrifty)} the most a GPU, {thrifty.tokens_per_gpu:.0f}"
        yield f"{line}."
    if draft is None and all(row.mode is Mode.AR for row in rows) and rows[0].num_gpus is not None:
        yield "Only ar: name a --draft to compare it with drafting."
    if failed := sum(row.run.num_failed for row in rows):
        yield f"{failed} requests failed: there is too little memory for them."


def _way(row: SimulatedRow) -> str:
    return f"{row.mode.value} with k = {row.draft_len}" if row.mode.has_drafts else row.mode.value
