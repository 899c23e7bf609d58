"""What is measured: cells and their prompts."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.lib.peers import prompts
from scripts.lib.peers.cells import IN_FLIGHT, Cell, CellKind, expected_s, full_cells, quick_cells, warm_up
from scripts.lib.peers.prompts import PromptSet

SET = PromptSet("a test", tuple(tuple(range(100 * i, 100 * i + 40 + i)) for i in range(64)))


def test_the_committed_prompts_are_as_many_as_the_cells_need_and_name_their_source():
    content = json.loads(Path(prompts.__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    texts = [row["prompt"] for row in content["prompts"]]
    assert len(set(texts)) == len(texts) == 64
    assert "MT-bench" in content["source"]
    assert "GSM8K" in content["source"]


def test_chat_cells_share_no_prompt():
    used = [prompt for count in IN_FLIGHT for prompt in SET.of(Cell(CellKind.FIXED, count, None, 64))]
    assert len(set(used)) == len(used) == sum(IN_FLIGHT)


@pytest.mark.parametrize("cell", [cell for cell in full_cells() if cell.prompt_len is not None], ids=lambda c: c.label)
def test_long_prompts_have_their_length_and_no_common_beginning(cell: Cell):
    cut = SET.of(cell)
    assert [len(prompt) for prompt in cut] == [cell.prompt_len] * cell.num_in_flight
    assert len({prompt[0] for prompt in cut}) == cell.num_in_flight


def test_long_prompts_of_different_lengths_begin_differently():
    starts = {cell.label: {prompt[0] for prompt in SET.of(cell)} for cell in full_cells() if cell.prompt_len}
    assert all(not a & b for a, b in pairwise(starts.values()))


def test_only_natural_cells_end_by_themselves():
    assert {cell.kind for cell in full_cells() if not cell.ignore_eos} == {CellKind.NATURAL}


def test_an_engine_is_warmed_up_by_as_many_prompts_as_it_gets_at_most():
    assert warm_up(full_cells()).num_in_flight == max(IN_FLIGHT)
    assert warm_up([Cell(CellKind.FIXED, n, None, 64) for n in (1, 4)]).num_in_flight == 4


def test_quick_measures_as_many_in_flight_as_it_is_asked_for():
    assert [cell.num_in_flight for cell in quick_cells([1, 2, 4]) if cell.kind is CellKind.FIXED] == [1, 2, 4]


def test_quick_is_a_small_part():
    quick, full = (sum(expected_s(cell, 1, 269e6) for cell in cells()) for cells in (quick_cells, full_cells))
    assert quick < full / 2


def test_more_cores_and_fewer_weights_take_less_time():
    cell = Cell(CellKind.FIXED, 8, None, 64)
    assert expected_s(cell, 2, 269e6) < expected_s(cell, 1, 269e6) < expected_s(cell, 1, 3e9)
