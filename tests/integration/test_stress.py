"""Random load on real services, a number of answers long and not a time, so that a crowded machine tests as much as a
free one; `scripts/stress` runs the same for longer, and more presets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from minedraft.types import Mode
from tests.stress.models import Pair, make_pair
from tests.stress.presets import PRESETS
from tests.stress.runner import Patience, run_preset
from tests.stress.truth import Truth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEED = 1
PATIENCE = Patience(hang_s=100.0, stall_s=60.0)  # of a crowded machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stress")


@pytest.fixture(scope="module")
def truths() -> dict[Path, Truth]:
    return {}


def truth_of(pair: Pair, truths: dict[Path, Truth]) -> Truth:
    if pair.target not in truths:
        truths[pair.target] = Truth(pair, SEED)
    return truths[pair.target]


@pytest.mark.parametrize(
    ("name", "num_exact"),
    [("mixed", 100), ("tiny-kv", 120), ("ngram", 15), ("wide-drafter", 30), ("wide-target", 60), ("head", 30)],
)
async def test_under_random_load_every_answer_is_right_and_all_comes_back(
    name: str, num_exact: int, folder: Path, tmp_path: Path, truths: dict[Path, Truth]
) -> None:
    pair = make_pair(folder, PRESETS[name].pair)
    outcome = await run_preset(
        PRESETS[name], Mode.MINEDRAFT, pair, truth_of(pair, truths), tmp_path,
        seed=str(SEED), seconds=0, least=num_exact, num_clients=6, patience=PATIENCE, report=print,
        stop=asyncio.Event(),
    )  # fmt: skip
    assert not outcome.problem, f"{outcome.line()}\n{outcome.problem}"
    assert outcome.num_exact >= num_exact
    assert outcome.status is not None
    assert outcome.status.accepted_drafts > 0
    assert name != "tiny-kv" or outcome.status.preemptions > 0, "its memory is too small for all"
