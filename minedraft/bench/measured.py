"""Reads the rounds that a benchmark measured from its JSON file, and sets predictions beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minedraft.errors import ConfigError
from minedraft.theory.costs import Costs
from minedraft.theory.fit import Measured, fit_costs, rate_of
from minedraft.theory.modes import Prediction, predict_mode
from minedraft.types import Mode


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """A row of a benchmark.

    Attributes:
        tokens_per_round: of one request, the one that the verify adds included.
        decode_tokens_per_s: of the steady rounds alone, without prompts, ramp and tail.
        tokens_per_s: of the whole run.
    """

    rounds: Measured
    tokens_per_round: float
    decode_tokens_per_s: float
    tokens_per_s: float

    @property
    def num_in_flight(self) -> float:
        return self.rounds.num_requests * self.rounds.mode.num_batches

    @property
    def rates(self) -> list[float]:
        """The acceptance of each draft, taken to be the same for all."""
        draft_len = self.rounds.draft_len
        return [rate_of(self.tokens_per_round, draft_len)] * draft_len

    def predicted(self, costs: Costs) -> Prediction:
        """Return what these costs say about this row."""
        return predict_mode(costs, self.rounds.mode, self.num_in_flight, self.rates)


def read_rows(path: Path) -> list[MeasuredRow]:
    """Return the rows that `minedraft bench --json` wrote, without those in which the service chose for itself and
    those of pearl, whose speed depends on how often it guessed right, which the file does not tell.

    Raises:
        ConfigError: the file cannot be read, is no such result, or has no rounds.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [_row(row) for table in content["tables"] for row in table["rows"] if not row["config"].get("is_auto")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        limit = f"must be a result of `minedraft bench --json`: {type(error).__name__} {error}"
        raise ConfigError("result", str(path), limit) from None
    rows = [row for row in found if row.rounds.mode is not Mode.PEARL and row.rounds.step_s > 0]
    if not rows:
        raise ConfigError("result", str(path), "has no measured rounds")
    return rows


def fit_rows(rows: Sequence[MeasuredRow]) -> Costs:
    """Return the costs that explain the rows best."""
    return fit_costs([row.rounds for row in rows])


def _row(row: Mapping[str, Any]) -> MeasuredRow:
    config, medians = row["config"], row["median"]
    times = [float(medians[name]) / 1e3 for name in ("draft_ms", "verify_ms", "step_ms")]
    mode = Mode(config["mode"])
    draft_len = int(config["draft_len"]) if mode.has_drafts else 0
    rounds = Measured(mode, float(config["max_batch_size"]), draft_len, *times)
    rates = (float(medians[name]) for name in ("tokens_per_round", "decode_tokens_per_s", "tokens_per_s"))
    return MeasuredRow(rounds, *rates)
