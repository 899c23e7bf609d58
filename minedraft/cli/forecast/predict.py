"""`minedraft predict`: what each mode gives, by theory, beside what a benchmark measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from minedraft.bench.measured import MeasuredRow, fit_rows, read_rows
from minedraft.cli.console import parse_ints, print_json
from minedraft.cli.flags.numbers import NumberRange
from minedraft.cli.forecast.traced import is_trace, traced_rows
from minedraft.cli.forecast.whole_run import (
    SHIPPED_PROMPT_LENS,
    WholeRun,
    simulate_rows,
    whole_runs_remark,
    whole_runs_table,
)
from minedraft.errors import ConfigError
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.settings.flags import UserPath
from minedraft.theory.costs import Costs
from minedraft.theory.modes import Prediction, best_draft_len
from minedraft.types import MAX_BATCH_SIZE, Mode

_EPILOG = """
\b
Measure first, with a service that runs with --allow-configure:
  minedraft bench -m 1,2,4,8 -k 1,3 --json result.json
\b
Then:
  minedraft predict result.json
  minedraft predict result.json --in-flight 1,4,16,64 --acceptance 0.8
  minedraft predict result.json --whole-runs
  minedraft predict trace.json
"""
_MAX_PROMPT_LEN = 1 << 20
_MODES = (Mode.AR, Mode.SD, Mode.MINEDRAFT)


@click.command(epilog=_EPILOG)
@click.argument("result", type=UserPath(), metavar="RESULT")
@click.option(
    "--in-flight",
    metavar="N,...",
    default="1,2,4,8,16,32",
    show_default=True,
    help="Requests in flight to predict for.",
)
@click.option(
    "--acceptance",
    metavar="A",
    default=None,
    type=NumberRange(0, 1),
    help="How likely a draft is accepted; default: as measured.",
)
@click.option("--whole-runs", is_flag=True, help="Simulate every row's whole run, too: prompts, ramp and tail.")
@click.option(
    "--prompt-lens",
    metavar="N,...",
    default=",".join(map(str, SHIPPED_PROMPT_LENS)),
    show_default="those of the prompts in the package",
    help="Tokens of the prompts, for --whole-runs of files that do not tell them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print costs, comparison and map as one JSON object.")
def predict(
    result: Path, in_flight: str, acceptance: float | None, whole_runs: bool, prompt_lens: str, as_json: bool
) -> None:
    """Set theory beside a measured RESULT, and say which mode is best where.

    RESULT is what `minedraft bench --json` wrote, or a trace that `minedraft-launch --trace` wrote during real work.

    The times of a draft and of a verify are fitted to the result: a part that every forward takes, and a part for
    each row beyond those that are free. The first table compares what follows with what was measured; the second
    predicts each mode, with its best number of drafts, for other numbers of requests in flight.
    """
    loads = parse_ints("in-flight", in_flight, 2 * MAX_BATCH_SIZE)
    rows = traced_rows(result) if is_trace(result) else read_rows(result)
    if whole_runs and not all(row.num_requests for row in rows):
        raise ConfigError("whole-runs", str(result), "a trace has no runs of a known load; give a result of bench")
    costs = fit_rows(rows)
    rate = _mean_rate(rows) if acceptance is None else acceptance
    lens = parse_ints("prompt-lens", prompt_lens, _MAX_PROMPT_LEN)
    simulated = simulate_rows(rows, costs, lens) if whole_runs else []
    best = {load: [_best(costs, mode, load, rate) for mode in _MODES] for load in loads}
    if as_json:
        print_json(_to_json(rows, costs, rate, best) | _whole_runs_json(simulated))
        return
    console = Console()
    console.print(_comparison(rows, costs))
    console.print(_remarks(rows, costs), style="italic")
    if simulated:
        console.print(whole_runs_table(simulated))
        console.print(whole_runs_remark(simulated), style="italic")
    console.print(_map(best))
    remark = f"tok/s predicted with the best k, if {rate:.0%} of the drafts that are reached are accepted."
    console.print(remark, style="italic")


def _mean_rate(rows: Sequence[MeasuredRow]) -> float:
    rates = [row.rates[0] for row in rows if row.rates]
    return sum(rates) / len(rates) if rates else 0.0


def _best(costs: Costs, mode: Mode, num_in_flight: int, rate: float) -> Prediction | None:
    """Return the best prediction; None where the mode has too few requests, or the drafter was not measured."""
    if num_in_flight < mode.num_batches or (mode.has_drafts and not costs.draft.base_s):
        return None
    return best_draft_len(costs, mode, num_in_flight, [rate] * MAX_DRAFT_LEN)


def _comparison(rows: Sequence[MeasuredRow], costs: Costs) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("mode", "k", "step", "predicted", "tok/s", "predicted", "ratio"):
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for row in rows:
        prediction = row.predicted(costs)
        table.add_row(
            row.label,
            str(row.rounds.draft_len or "-"),
            f"{row.rounds.step_s * 1e3:.1f}",
            f"{prediction.step_s * 1e3:.1f}",
            f"{row.decode_tokens_per_s:.1f}",
            f"{prediction.tokens_per_s:.1f}",
            f"{prediction.tokens_per_s / row.decode_tokens_per_s:.2f}",
        )
    return table


def _remarks(rows: Sequence[MeasuredRow], costs: Costs) -> str:
    errors = [abs(row.predicted(costs).tokens_per_s / row.decode_tokens_per_s - 1) for row in rows]
    within = sum(error <= 0.1 for error in errors)
    return (
        "step: ms between rounds; tok/s: of the steady rounds, without prompts, ramp and tail.\n"
        f"{within} of {len(errors)} within 10 %, at most {max(errors):.0%} off.\n"
        f"{_costs_line(costs)}"
    )


def _costs_line(costs: Costs) -> str:
    draft, verify = costs.draft, costs.verify
    return (
        f"draft: {draft.base_s * 1e3:.2f} ms + {draft.slope_s * 1e3:.3f} a request beyond {draft.free:g};"
        f" verify: {verify.base_s * 1e3:.2f} ms + {verify.slope_s * 1e3:.3f} a row beyond {verify.free:g}.\n"
        f"Forwards that only read take {1 + costs.collision:.2f} times as long while both workers have one."
    )


def _map(best: dict[int, list[Prediction | None]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("in flight", justify="right", no_wrap=True)
    for mode in _MODES:
        table.add_column(mode.value, justify="right", no_wrap=True)
    table.add_column("best", no_wrap=True)
    for load, predictions in best.items():
        known = [p for p in predictions if p is not None]
        table.add_row(str(load), *map(_cell, predictions), max(known, key=lambda p: p.tokens_per_s).mode.value)
    return table


def _cell(prediction: Prediction | None) -> str:
    if prediction is None:
        return "-"
    k = f" k={prediction.draft_len}" if prediction.mode.has_drafts else ""
    return f"{prediction.tokens_per_s:.0f}{k}"


def _to_json(
    rows: Sequence[MeasuredRow], costs: Costs, rate: float, best: dict[int, list[Prediction | None]]
) -> dict[str, object]:
    return {
        "costs": asdict(costs),
        "rows": [
            {
                "mode": row.rounds.mode.value,
                "num_in_flight": row.num_in_flight,
                "draft_len": row.rounds.draft_len,
                "measured": {"step_s": row.rounds.step_s, "tokens_per_s": row.decode_tokens_per_s},
                "predicted": {"step_s": predicted.step_s, "tokens_per_s": predicted.tokens_per_s},
            }
            for row in rows
            for predicted in [row.predicted(costs)]
        ],
        "acceptance": rate,
        "map": [asdict(p) for predictions in best.values() for p in predictions if p is not None],
    }


def _whole_runs_json(simulated: Sequence[WholeRun]) -> dict[str, object]:
    return {
        "whole_runs": [
            {
                "label": whole.row.label,
                "draft_len": whole.row.rounds.draft_len,
                "measured_tokens_per_s": whole.row.tokens_per_s,
                "simulated_tokens_per_s": whole.run.tokens_per_s,
                "ratio": whole.ratio,
                "repeats_differ_by": whole.row.spread,
            }
            for whole in simulated
        ]
    }
