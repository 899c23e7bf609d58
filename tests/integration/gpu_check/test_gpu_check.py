"""scripts/gpu_check from end to end on a CPU, with tiny sizes: every step, real processes, one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu.claims import MODES, NO_GPU
from scripts.gpu.main import LIMITS_S
from scripts.gpu.scale import TINY
from scripts.gpu.summary import MAX_LINES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("check")


@pytest.fixture(scope="module")
def printed(out: Path) -> list[str]:
    environment = os.environ | {"MINEDRAFT_PYTHON": sys.executable, "OUT": str(out)}
    environment.pop("GPU_STEPS", None)
    argv = [str(ROOT / "scripts/gpu_check"), "--device", "cpu"]
    done = subprocess.run(argv, cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{(out / 'check.log').read_text()[-4000:]}"
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def content(printed: list[str], out: Path) -> dict[str, Any]:
    return json.loads((out / "check.json").read_text())


def test_every_step_runs_and_leaves_one_log_and_one_json(content: dict[str, Any], out: Path) -> None:
    assert {name: found["result"] for name, found in content["steps"].items()} == {
        name: "ok" for name in LIMITS_S if name != "summary"
    }
    assert sorted(path.name for path in out.iterdir()) == ["check.json", "check.log"]


def test_programs_are_compiled_before_anything_is_timed(content: dict[str, Any]) -> None:
    (found,) = content["imports"]["warmed"].values()
    assert found.startswith("tiny float32 on "), "on a CPU whatever computes there"
    assert "test_attention_cuda" in "".join(content["gputests"]["exit_codes"])


def test_the_table_is_printed_last_and_claims_nothing_of_a_gpu(printed: list[str]) -> None:
    table = printed[len(LIMITS_S) :]  # after Python's version and a line for each step
    assert len(table) <= MAX_LINES
    start = table.index("what may be claimed:")
    assert all(line.strip().startswith((NO_GPU, "never")) for line in table[start + 1 :])


def test_what_is_decided_together_is_what_is_decided_row_by_row(content: dict[str, Any]) -> None:
    choice, loops = content["law"]["choice"], content["law"]["loop"]
    assert choice["drafts_equal"] == choice["drafts"] > 0
    assert choice["verdicts_equal"] == choice["verdicts"] > 0
    assert [found["equal"] == found["drafts"] > 0 for found in loops.values()] == [True] * 3
    assert content["law"]["graphs"]["captured"] is None, "nothing is captured on a CPU"


def test_tiny_models_answer_as_generate_in_every_mode_and_after_a_kill(content: dict[str, Any]) -> None:
    found, num = content["exact"]["llama"], TINY.exact_prompts
    assert found["equal"] == dict.fromkeys(MODES, num)
    assert found["seeded_equal"] == dict.fromkeys(MODES, found["seeded_prompts"])
    assert found["equal_while_killed"] == found["equal_after_kill"] == num
    assert found["state_after_kill"] in ("degraded", "serving")  # the launcher may have started another drafter already
    assert 0 < found["vsr"] < 1, "drafts are accepted and rejected"


def test_the_controlled_pair_answers_with_its_map_in_bfloat16(content: dict[str, Any]) -> None:
    found = content["exact"]["controlled"]
    assert found["dtype"] == "bfloat16"
    assert found["equal"] == dict.fromkeys(MODES, TINY.exact_prompts)
    assert found["vsr"] == found["predicted_vsr"], "as many drafts are accepted as the map says"


@pytest.mark.parametrize("experiment", ["B", "C", "D"])
def test_the_controlled_pair_answers_with_its_map_in_float32(content: dict[str, Any], experiment: str) -> None:
    found = content["pair"][experiment]
    assert TINY.dtype == "float32"
    assert found["equal"] == dict.fromkeys(MODES, found["checked"])
    modes = [(row["config"]["mode"], row["config"]["max_batch_size"]) for row in found["rows"]]
    assert modes == [("ar", 4), ("sd", 2), ("sd", 4), ("minedraft", 2)]
    drafted = [row["median"]["vsr"] for row in found["rows"][1:]]
    assert drafted == [pytest.approx(content["pair"]["predicted_vsr"])] * 3


def test_the_experiments_differ_by_the_drafters_device(content: dict[str, Any]) -> None:
    drafters = {name: content["pair"][name]["workers"][0] for name in "BCD"}
    verifier = content["pair"]["B"]["workers"][1]
    assert {worker["role"] for worker in drafters.values()} == {"drafter"}
    assert drafters["B"]["model"] == "sleeping"
    assert drafters["D"]["device"] == verifier["device"]
    assert content["pair"]["generate"]["equal"] == content["pair"]["generate"]["m"] == 4


def test_each_role_is_timed_alone(content: dict[str, Any]) -> None:
    alone = content["alone"]
    assert len(alone["tiny"]["forwards"]) == len(TINY.num_sequences) * len(TINY.span_lens)
    assert len(alone["tiny"]["verifies"]) == len(TINY.command_sizes)
    assert len(alone["tiny-draft"]["drafts"]) == len(TINY.command_sizes) * len(TINY.draft_lens)
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 for row in alone["tiny"]["forwards"])
