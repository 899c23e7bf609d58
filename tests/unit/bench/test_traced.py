"""The fit from a trace: a simulated service writes one, and what made its times is found again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from minedraft.bench.measured import fit_rows
from minedraft.cli.forecast.predict import predict
from minedraft.cli.forecast.traced import is_trace, traced_rows
from minedraft.core import events
from minedraft.errors import ConfigError
from minedraft.messages import Timing
from minedraft.observe.trace_events import TraceRecords, lane_names
from minedraft.sim.acceptance import same
from minedraft.sim.planning import measured_machine
from minedraft.sim.simulation import Load, endless_limits, run_simulation
from minedraft.theory.costs import Cost, Costs
from minedraft.types import Batch, Mode

TRUE = Costs(
    draft=Cost(0.005, 0.0002),
    verify=Cost(0.020, 0.0004),
    turns_overhead=Cost(0.002),
    queued_overhead=Cost(0.0003),
    collision=0.4,
)
RATE = 0.7


def write_trace(path: Path, loads: Sequence[tuple[Mode, int, int]]) -> None:
    """Write the traces of simulated services one after the other, as if it were one service that changed its mode."""
    lines = list(lane_names("simulated"))
    for mode, size, k in loads:
        records = TraceRecords()
        load = Load((20,), (60,), 2 * size * mode.num_batches)
        machine = measured_machine(TRUE, same(RATE))

        def observe(event: events.Event, now_s: float, to: TraceRecords = records) -> None:
            lines.extend(to.of(event, now_s))

        run_simulation(machine, endless_limits(mode, size, k), load, observers=[observe])
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def test_a_trace_gives_the_costs_that_made_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    loads = [(mode, size, k) for mode in (Mode.SD, Mode.MINEDRAFT) for size in (2, 4, 8) for k in (1, 3)]
    write_trace(path, [*loads, *((Mode.AR, size, 0) for size in (4, 16))])
    assert is_trace(path)
    rows = traced_rows(path)
    costs = fit_rows(rows)
    assert {(row.rounds.mode, row.rounds.num_requests, row.rounds.draft_len) for row in rows} >= set(loads)
    for size in (2, 8):
        assert costs.draft.at(size) == pytest.approx(TRUE.draft.at(size), rel=0.01)
    for num_rows in (4, 32):
        assert costs.verify.at(num_rows) == pytest.approx(TRUE.verify.at(num_rows), rel=0.02)
    assert costs.collision == pytest.approx(0.4, abs=0.05)
    assert costs.turns_overhead.at(4) == pytest.approx(0.002, rel=0.1)
    assert costs.queued_overhead.at(4) == pytest.approx(0.0003, rel=0.1)
    for row in rows:
        assert row.predicted(costs).step_s == pytest.approx(row.rounds.step_s, rel=0.03), row.label
        if row.rounds.draft_len:
            assert row.draft_rate == pytest.approx(RATE, abs=0.1)


def test_a_verify_of_several_decode_steps_counts_as_so_many(tmp_path: Path) -> None:
    path, records, lines = tmp_path / "trace.json", TraceRecords(), list(lane_names("made up"))
    happened: list[events.Event] = [events.ModeChanged(Mode.AR, 8, 0, "start")]
    for number in range(12):
        happened.append(events.RoundPlanned(Batch.A, number, 2, 0, 0))
        happened.append(events.Verified(Batch.A, number, Timing(busy_ns=36_000_000), num_steps=4))
        happened.append(events.RoundCommitted(Batch.A, number, 2, 8, (), False, 1))
    for index, event in enumerate(happened):
        lines.extend(records.of(event, index // 3 * 0.040))
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    (row,) = traced_rows(path)
    assert (row.rounds.verify_s, row.rounds.step_s) == pytest.approx((0.009, 0.010))
    assert (row.tokens_per_round, row.decode_tokens_per_s) == pytest.approx((1.0, 200.0))


def test_the_command_takes_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(path, [(Mode.SD, 4, 2)])
    found = json.loads(CliRunner().invoke(predict, [str(path), "--json"], catch_exceptions=False).stdout)
    assert [(row["mode"], row["num_in_flight"], row["draft_len"]) for row in found["rows"]][:1] == [("sd", 4.0, 2)]
    with pytest.raises(ConfigError, match="whole-runs"):
        CliRunner().invoke(predict, [str(path), "--whole-runs"], catch_exceptions=False)


@pytest.mark.parametrize("text", ["[]", "[1]", '[{"ph": "X"}]', "["])
def test_what_is_no_trace_or_too_short_a_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError):
        traced_rows(tmp_path / "t.json")
