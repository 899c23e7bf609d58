"""The cells of the paper's matrix, and what the simulator says of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from minedraft.sim.service import Machine
from minedraft.sim.simulation import Load, SimulatedRun, endless_limits, run_simulation, with_tetris
from minedraft.types import Mode

QWEN, LLAMA = "qwen3-32b", "llama-3.3-70b-int4"
QWEN_DRAFTS = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")
DRAFT_LENS = (1, 2, 3, 4, 5)
WAVES = 2
"""Requests for each seat. All have the same lengths, so only the seats' first and last rounds differ from the others,
and only rounds with all seats taken count."""
PROMPT_LEN, OUTPUT_LEN = 128, 128
PREFILL_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of the matrix.

    Attributes:
        experiment: "pairs", "n", "m" or "tetris".
        size: requests per batch (m). num_samples: of each prompt (n); each is a request.
        extra: drafts beyond k, of which TETRIS chooses (e); 0: without it.
    """

    experiment: str
    target: str
    draft: str
    mode: Mode
    size: int
    draft_len: int
    extra: int = 0
    num_samples: int = 1

    @property
    def num_in_flight(self) -> int:
        return self.size * self.mode.num_batches


def matrix() -> Iterator[Cell]:
    """Yield the cells: in every experiment sd with m (the paper's baseline), sd with 2m and ar with 2m (as many in
    flight as minedraft with two batches of m), and minedraft, with TETRIS too."""
    pairs = [(QWEN, draft, 16, 3) for draft in QWEN_DRAFTS]
    pairs += [(LLAMA, "llama-3.1-8b", 64, 3)]
    pairs += [(f"vicuna-{name}", f"vicuna-{name}-eagle", 16, 3) for name in ("33b", "13b")]
    for target, draft, size, most_extra in pairs:
        for k in DRAFT_LENS:
            yield from _compared(Cell("pairs", target, draft, Mode.MINEDRAFT, size, k), range(1, most_extra + 1))
    # The paper's script for sequential EAGLE has 64 requests per batch, the one for overlapped EAGLE has 16.
    for name in ("33b", "13b"):
        for k in DRAFT_LENS:
            yield Cell("pairs", f"vicuna-{name}", f"vicuna-{name}-eagle", Mode.SD, 64, k)
    for target, draft, size, samples in ((QWEN, "qwen3-0.6b", 16, (1, 2, 3)), (LLAMA, "llama-3.1-8b", 64, (1, 2))):
        for num_samples in samples:
            for k in DRAFT_LENS:
                cell = Cell("n", target, draft, Mode.MINEDRAFT, size, k, num_samples=num_samples)
                yield from (replace(cell, mode=Mode.SD), cell)
    for size in (8, 16, 32, 64):
        for k in DRAFT_LENS:
            yield from _compared(Cell("m", QWEN, "qwen3-0.6b", Mode.MINEDRAFT, size, k), ())
    for target, draft, size, num_samples, most in (
        (QWEN, "qwen3-0.6b", 16, 1, 5),
        (QWEN, "qwen3-0.6b", 16, 2, 3),
        (LLAMA, "llama-3.1-8b", 64, 2, 5),
    ):
        for extra in range(1, most + 1):
            cell = Cell("tetris", target, draft, Mode.MINEDRAFT, size, 3, extra, num_samples)
            yield from (replace(cell, mode=Mode.SD), cell)


def _compared(cell: Cell, extras: range | tuple[()]) -> Iterator[Cell]:
    yield replace(cell, mode=Mode.AR, size=2 * cell.size, draft_len=0)
    yield replace(cell, mode=Mode.SD)
    yield replace(cell, mode=Mode.SD, size=2 * cell.size)
    yield cell
    for extra in extras:
        yield replace(cell, extra=extra)


def same_work(cell: Cell) -> Cell:
    """Return the cell that stands for all those that are the same to a machine."""
    return replace(cell, experiment="", num_samples=1)


def simulate_cell(machine: Machine, cell: Cell) -> SimulatedRun:
    """Return what the product's scheduler, lanes and policies make of a cell on a machine."""
    limits = replace(endless_limits(cell.mode, cell.size, cell.draft_len), prefill_chunk=PREFILL_CHUNK)
    limits, policies = with_tetris(limits, cell.extra)
    # The samples of a prompt are asked for one after the other.
    load = Load((PROMPT_LEN,), (OUTPUT_LEN,), WAVES * cell.num_in_flight)
    return run_simulation(machine, limits, load, policies=policies)


def cell_json(cell: Cell, run: SimulatedRun) -> dict[str, Any]:
    """Return a cell and what was simulated; times in milliseconds. Throughput counts the rounds with all seats taken
    and no prompt."""
    rounds = run.rounds
    return asdict(cell) | {
        "mode": cell.mode.value,
        "tokens_per_s": run.full_tokens_per_s,
        "makespan_per_request_ms": run.makespan_per_request_s * 1e3,
        "per_token_ms": run.per_token.p50 * 1e3,
        "draft_ms": rounds.draft_ms,
        "verify_ms": rounds.verify_ms,
        "step_ms": rounds.step_ms,
        "vsr": rounds.vsr,
        "mean_accepted_len": rounds.mean_accepted_len,
        "verifier_busy": rounds.verifier_busy,
        "drafter_busy": rounds.drafter_busy,
    }
