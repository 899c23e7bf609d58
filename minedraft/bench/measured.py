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
        tokens_per_round: of one request, the one that the verify adds included, and first and last rounds, too, in
            which drafts are missing or of no use.
        decode_tokens_per_s: of the steady rounds alone, without prompts, ramp and tail: by the step of two batches
            together, as their steps alternate between short and long.
        tokens_per_s: of the whole run. run_tokens_per_s: of each of its repeats.
        mean_accepted_len: drafts accepted in a round that has drafts.
        num_requests, output_len: of the run: sent together, and tokens of each answer.
        input_lens, output_lens: tokens of each request's prompt and answer; () in files that do not tell.
    """

    rounds: Measured
    tokens_per_round: float
    decode_tokens_per_s: float
    tokens_per_s: float
    run_tokens_per_s: tuple[float, ...] = ()
    mean_accepted_len: float = 0.0
    num_requests: int = 0
    output_len: int = 0
    input_lens: tuple[int, ...] = ()
    output_lens: tuple[int, ...] = ()

    @property
    def num_in_flight(self) -> float:
        return self.rounds.num_requests * self.rounds.mode.num_batches

    @property
    def label(self) -> str:
        """As "sd 8" or "minedraft 4+4"."""
        return f"{self.rounds.mode.value} {'+'.join([f'{self.rounds.num_requests:g}'] * self.rounds.mode.num_batches)}"

    @property
    def rates(self) -> list[float]:
        """The acceptance of each draft, taken to be the same for all."""
        draft_len = self.rounds.draft_len
        return [rate_of(self.tokens_per_round, draft_len)] * draft_len

    @property
    def draft_rate(self) -> float:
        """The acceptance of each draft once those before it are accepted, in rounds that have drafts."""
        draft_len = self.rounds.draft_len
        return rate_of(1 + self.mean_accepted_len, draft_len) if draft_len else 0.0

    @property
    def spread(self) -> float:
        """By how much the fastest repeat was faster than the slowest one, as a share of that."""
        return max(self.run_tokens_per_s) / min(self.run_tokens_per_s) - 1 if self.run_tokens_per_s else 0.0

    def predicted(self, costs: Costs) -> Prediction:
        """Return what these costs say about this row."""
        return predict_mode(costs, self.rounds.mode, self.num_in_flight, self.rates)


def read_rows(path: Path) -> list[MeasuredRow]:
    """Return the rows that `minedraft bench --json` wrote, without those in which the service chose for itself, those
    of ar on the verifier's device alone and of sd on all cores, and those of pearl, whose speed depends on how often it
    guessed right, which the file does not tell.

    Raises:
        ConfigError: the file cannot be read, is no such result, or has no rounds.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tables = content["tables"]
        found = [_row(row, table) for table in tables for row in table["rows"] if not _is_apart(row["config"])]
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


def _is_apart(config: Mapping[str, Any]) -> bool:
    return any(config.get(name) for name in ("is_auto", "keeps_cores", "shares_cores"))


def _row(row: Mapping[str, Any], table: Mapping[str, Any]) -> MeasuredRow:
    config, medians = row["config"], row["median"]
    times = [float(medians[name]) / 1e3 for name in ("draft_ms", "verify_ms", "step_ms")]
    mode = Mode(config["mode"])
    draft_len = int(config["draft_len"]) if mode.has_drafts else 0
    rounds = Measured(mode, float(config["max_batch_size"]), draft_len, *times)
    tokens_per_round = float(medians["tokens_per_round"])
    runs = row.get("runs", ())
    lens = (tuple(int(n) for n in runs[0].get(name, ())) if runs else () for name in ("input_lens", "output_lens"))
    return MeasuredRow(
        rounds,
        tokens_per_round,
        rounds.num_requests * tokens_per_round / max(rounds.step_s, 1e-9),
        float(medians["tokens_per_s"]),
        tuple(float(run.get("minedraft", run)["tokens_per_s"]) for run in runs),
        float(medians["mean_accepted_len"]),
        int(table["num_prompts"]),
        int(table["sampling"]["max_new_tokens"]),
        *lens,
    )
