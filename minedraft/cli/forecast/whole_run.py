"""Whole runs of a benchmark, simulated: prompts, ramp and tail included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from minedraft.bench.measured import MeasuredRow
from minedraft.sim.acceptance import same
from minedraft.sim.planning import measured_machine
from minedraft.sim.simulation import Load, SimulatedRun, endless_limits, run_simulation
from minedraft.theory.costs import Costs

SHIPPED_PROMPT_LENS = (45, 46, 98, 63, 51, 49, 76, 68, 40, 46, 88, 73, 47, 44, 99, 63, 44, 48, 94, 69, 46, 45, 83, 63)
"""Tokens of the prompts that come with the package, in SmolLM2's words and with its chat template; in Qwen's they are
3 % fewer."""


@dataclass(frozen=True, slots=True)
class WholeRun:
    """A row of a benchmark, and what the simulator says of it."""

    row: MeasuredRow
    run: SimulatedRun

    @property
    def ratio(self) -> float:
        """Predicted by measured tokens per second."""
        return self.run.tokens_per_s / self.row.tokens_per_s

    @property
    def is_within(self) -> bool:
        """Whether the prediction is at most 10 % off."""
        return abs(self.ratio - 1) <= 0.1


def simulate_rows(
    rows: Sequence[MeasuredRow], costs: Costs, prompt_lens: Sequence[int] = SHIPPED_PROMPT_LENS
) -> list[WholeRun]:
    """Return each row with its simulation. prompt_lens: tokens of the prompts, in the order of the benchmark, for rows
    that do not tell them."""
    return [WholeRun(row, _simulate(row, costs, prompt_lens)) for row in rows]


def _simulate(row: MeasuredRow, costs: Costs, prompt_lens: Sequence[int]) -> SimulatedRun:
    rounds, size = row.rounds, int(row.rounds.num_requests)
    machine = measured_machine(costs, same(row.draft_rate), size)
    num_requests = len(row.input_lens) or row.num_requests
    load = Load(row.input_lens or tuple(prompt_lens), row.output_lens or (row.output_len,), num_requests)
    return run_simulation(machine, endless_limits(rounds.mode, size, rounds.draft_len), load)


def whole_runs_table(whole_runs: Sequence[WholeRun]) -> Table:
    """Return the comparison."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("mode", "k", "requests", "tok/s", "simulated", "ratio", "repeats"):
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for whole in whole_runs:
        row = whole.row
        table.add_row(
            row.label,
            str(row.rounds.draft_len or "-"),
            str(row.num_requests),
            f"{row.tokens_per_s:.1f}",
            f"{whole.run.tokens_per_s:.1f}",
            f"{whole.ratio:.2f}",
            f"{row.spread:.0%}",
        )
    return table


def whole_runs_remark(whole_runs: Sequence[WholeRun]) -> str:
    """Return what the table says, in words."""
    within = sum(whole.is_within for whole in whole_runs)
    off = max(abs(whole.ratio - 1) for whole in whole_runs)
    return (
        "tok/s: of the whole run, with prompts, ramp and tail; repeats: how much they differ among themselves.\n"
        f"{within} of {len(whole_runs)} within 10 %, at most {off:.0%} off."
    )
