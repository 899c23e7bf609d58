"""What is measured: cells, each a number of prompts that are sent together, and how long one takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

IN_FLIGHT = (1, 2, 4, 8, 16, 32)


class CellKind(StrEnum):
    """The columns of the report.

    fixed: chat prompts, end of text ignored. natural: chat prompts, the answer ends where the model ends it.
    context: long prompts, end of text ignored. first: many prompts at once, for the time to the first token.
    """

    FIXED = "fixed"
    NATURAL = "natural"
    CONTEXT = "context"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Cell:
    """Prompts that are sent together.

    Attributes:
        prompt_len: tokens of each prompt; None: whole chat prompts, each of its own length.
        max_new_tokens: new tokens of each answer; with `ignore_eos` exactly.
        repeats: how many repeats measure it; None: all.
    """

    kind: CellKind
    num_in_flight: int
    prompt_len: int | None
    max_new_tokens: int
    repeats: int | None = None

    @property
    def ignore_eos(self) -> bool:
        return self.kind is not CellKind.NATURAL

    @property
    def label(self) -> str:
        length = f" x {self.prompt_len}" if self.prompt_len is not None else ""
        return f"{self.kind.value} {self.num_in_flight}{length}"


def warm_up(cells: Sequence[Cell]) -> Cell:
    """Return what an engine answers before these cells, unmeasured: as many chat prompts as they send at most."""
    return Cell(CellKind.FIXED, max(cell.num_in_flight for cell in cells), None, 8)


def full_cells(in_flight: Sequence[int] = IN_FLIGHT) -> list[Cell]:
    """Return the cells of a whole run. The longest are measured once or twice, so that a run ends in time."""
    return [
        *(Cell(CellKind.FIXED, n, None, 64) for n in in_flight),
        *(Cell(CellKind.NATURAL, n, None, 128, repeats=2) for n in _few(in_flight)),
        Cell(CellKind.FIRST, 16, 100, 4),
        # So many new tokens that all answers are in flight for a while, where prompts go in small chunks.
        Cell(CellKind.CONTEXT, 8, 1024, 96, repeats=2),
        Cell(CellKind.CONTEXT, 8, 2048, 128, repeats=1),
    ]


QUICK = (1, 8, 32)


def quick_cells(in_flight: Sequence[int] = QUICK) -> list[Cell]:
    """Return short cells, and few."""
    return [
        *(Cell(CellKind.FIXED, n, None, 32) for n in in_flight),
        Cell(CellKind.NATURAL, in_flight[len(in_flight) // 2], None, 32),
        Cell(CellKind.FIRST, 16, 100, 4),
        Cell(CellKind.CONTEXT, 8, 1024, 64),
    ]


def _few(in_flight: Sequence[int]) -> list[int]:
    """Return the least, eight if it is among them, and the most."""
    return sorted({min(in_flight), *(n for n in in_flight if n == 8), max(in_flight)})


def expected_s(cell: Cell, num_cores: int, weight_bytes: float) -> float:
    """Return about how many seconds a cell takes, for a first estimate: the run itself corrects it.

    Made from rates of a 135M model in bfloat16 (269 MB) on a core with AVX-512.
    """
    speed = 269e6 / weight_bytes * (1.0 if num_cores == 1 else 0.8 * num_cores)
    count, length = cell.num_in_flight, cell.prompt_len or 85
    prompts_s = count * length / (1300 * speed)
    decode_rate = 55 * speed * float(count**0.65) / (1 + length / 1000)
    return prompts_s + count * cell.max_new_tokens / decode_rate
