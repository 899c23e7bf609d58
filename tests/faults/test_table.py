"""The table of faults is whole: every row has a proof, and every proof exists."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.faults.case import Case
from tests.faults.rows import ROWS

ROOT = Path(__file__).parents[2]
NUM_ROWS = 42
BY_ROW = [pytest.param(case, id=str(case.row)) for case in ROWS]


def test_every_row_is_there_once() -> None:
    assert [case.row for case in ROWS] == list(range(1, NUM_ROWS + 1))


@pytest.mark.parametrize("case", BY_ROW)
def test_the_proofs_of_a_row_exist(case: Case) -> None:
    assert case.proofs or case.live or case.skipped, "no proof"
    for node in case.proofs:
        path, _, name = node.partition("::")
        assert name in names_in(path), node


@cache
def names_in(path: str) -> frozenset[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
