"""The trace of a real service with tiny models."""

from __future__ import annotations

import pytest

from minedraft.observe.trace_reader import read_trace
from minedraft.types import Batch, Role
from tests.integration.observe.conftest import ANSWERS, Observed
from tests.unit.observe.trace_format import check_trace


@pytest.mark.slow
def test_it_is_in_the_standard_format_and_no_device_does_two_things_at_once(observed: Observed) -> None:
    check_trace(observed.trace)


@pytest.mark.slow
def test_it_has_the_commands_of_both_workers_on_one_clock(observed: Observed) -> None:
    trace = read_trace(observed.trace_path)
    rounds = {bar.number: bar for bar in trace.bars if bar.role is Role.VERIFIER}
    assert len(rounds) > ANSWERS
    drafted = [bar for bar in trace.bars if bar.role is Role.DRAFTER and not bar.is_prefill and bar.number in rounds]
    assert drafted
    for draft in drafted:
        assert draft.end_s <= rounds[draft.number].start_s, "a round is verified after it was drafted"
        assert draft.batch is rounds[draft.number].batch
    assert {bar.batch for bar in trace.bars} <= set(Batch)
    assert "mode minedraft" in [note.text for note in trace.notes]
