"""A minute of random load on real services; `scripts/stress` runs the same for longer, and more presets."""

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
    ("name", "seconds"),
    [("mixed", 10), ("tiny-kv", 15), ("ngram", 10), ("wide-drafter", 10), ("wide-target", 10), ("head", 10)],
)
async def test_under_random_load_every_answer_is_right_and_all_comes_back(
    name: str, seconds: float, folder: Path, tmp_path: Path, truths: dict[Path, Truth]
) -> None:
    pair = make_pair(folder, PRESETS[name].pair)
    outcome = await run_preset(
        PRESETS[name], Mode.MINEDRAFT, pair, truth_of(pair, truths), tmp_path,
        seed=str(SEED), seconds=seconds, num_clients=6, patience=PATIENCE, report=print, stop=asyncio.Event(),
    )  # fmt: skip
    assert not outcome.problem, f"{outcome.line()}\n{outcome.problem}"
    assert outcome.num_exact > 5
